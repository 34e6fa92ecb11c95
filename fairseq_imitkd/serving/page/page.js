"use strict";

const element = (id) => document.getElementById(id);
const [form, source, button, result, copy, status, error] =
  ["form", "source", "translate", "result", "copy", "status", "error"].map(element);
const number = new Intl.NumberFormat("en");
let translations = [];

/** Return a JSON answer of the server; throw an Error with the server's message, or with what went wrong. */
async function ask(path, options) {
  let response;
  try {
    response = await fetch(path, options);
  } catch {
    throw new Error("The server does not answer. Is it still running?");
  }
  const answer = await response.json().catch(() => ({}));
  if (!response.ok) {
    const said = answer.error ?? `The server answered with status ${response.status}.`;
    throw new Error(said[0].toUpperCase() + said.slice(1));
  }
  return answer;
}

function complain(message) {
  error.textContent = message;
  error.hidden = !message;
  error.scrollIntoView({ block: "nearest" });
}

/** Return a language's English name, or the model's code if it has none. */
function language(code) {
  try {
    return new Intl.DisplayNames(["en"], { type: "language" }).of(code.replace("_", "-"));
  } catch {
    return code;
  }
}

function setLanguage(code, name, text) {
  name.textContent = language(code);
  try {
    [text.lang] = Intl.getCanonicalLocales(code.replace("_", "-"));
  } catch {
    // The browser does not know this language.
  }
}

async function describe() {
  const { model, limits, version } = await ask("health");
  const [from, to] = [model.source_lang, model.target_lang];
  if (from && to) {
    setLanguage(from, element("source-language"), source);
    setLanguage(to, element("target-language"), result);
    element("languages").textContent = `${language(from)} to ${language(to)}`;
    document.title = element("languages").textContent;
  }
  const size = Number.isFinite(model.parameters) &&
    `${new Intl.NumberFormat("en", { notation: "compact", maximumFractionDigits: 1 }).format(model.parameters)} parameters`;
  for (const fact of [model.engine, model.quantization, size, `fairseq-imitkd ${version}`]) {
    if (fact) {
      element("model").append(Object.assign(document.createElement("li"), { textContent: fact }));
    }
  }
  element("limits").textContent =
    `At most ${number.format(limits.sentences)} lines at once and ${number.format(limits.tokens)} tokens per line.`;
}

function show(lines) {
  translations = lines;
  result.replaceChildren(...lines.map((line) =>
    Object.assign(document.createElement("p"), { textContent: line, dir: "auto" })));
  copy.hidden = !lines.length;
  if (lines.length) {
    result.parentElement.scrollIntoView({ block: "nearest" }); // on a phone, it is below the visible part
  }
}

async function translate() {
  if (button.disabled) {
    return;
  }
  const lines = source.value.replace(/\n+$/, "").split("\n");
  button.disabled = true;
  result.setAttribute("aria-busy", "true");
  status.textContent = "Translating …";
  complain("");
  const began = performance.now();
  try {
    const answer = await ask("translate", {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify({ text: lines }),
    });
    const seconds = (performance.now() - began) / 1000;
    show(answer.translations);
    const count = lines.length === 1 ? "1 line" : `${number.format(lines.length)} lines`;
    status.textContent = `${count}, ${number.format(answer.target_tokens)} tokens in ${seconds.toFixed(2)} s`;
  } catch (reason) {
    show([]);
    status.textContent = "";
    complain(reason.message);
  } finally {
    button.disabled = false;
    result.removeAttribute("aria-busy");
  }
}

async function copyAll() {
  const text = translations.join("\n");
  try {
    await navigator.clipboard.writeText(text);
  } catch { // browsers refuse this over plain HTTP from another machine
    const holder = Object.assign(document.createElement("textarea"), { value: text });
    document.body.append(holder);
    holder.select();
    document.execCommand("copy");
    holder.remove();
    copy.focus();
  }
  copy.textContent = "Copied";
  setTimeout(() => { copy.textContent = "Copy"; }, 1500);
}

form.noValidate = true; // the server reports what is wrong
form.addEventListener("submit", (event) => {
  event.preventDefault();
  translate();
});
source.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
    event.preventDefault();
    translate();
  }
});
copy.addEventListener("click", copyAll);
element("example").textContent =
  `curl ${new URL("translate", location.href)} -H 'Content-Type: application/json' \\\n  -d '{"text": ["…", "…"]}'`;
describe().catch((reason) => complain(reason.message));
