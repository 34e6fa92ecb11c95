"""Language tags: how they look, and those of tokenizers that have them in their code, in the order of ids."""

from collections.abc import Mapping

# https://github.com/facebookresearch/fairseq/tree/3d262bb25690e4eb2e7d3c1309b1e9c406ca4b99/examples/m2m_100
_M2M = """
    af am ar ast az ba be bg bn br bs ca ceb cs cy da de el en es et fa ff fi fr fy ga gd gl gu ha he hi hr ht
    hu hy id ig ilo is it ja jv ka kk km kn ko lb lg ln lo lt lv mg mk ml mn mr ms my ne nl no ns oc or pa pl
    ps pt ro ru sd si sk sl so sq sr ss su sv sw ta th tl tn tr uk ur uz vi wo xh yi yo zh zu
"""
_WMT21 = "en ha is ja cs ru zh de"
M2M = {
    name: [f"__{code}__" for code in codes.split()] for name, codes in (("m2m100", _M2M), ("wmt21", _WMT21))
}

# https://github.com/facebookresearch/fairseq/tree/3d262bb25690e4eb2e7d3c1309b1e9c406ca4b99/examples/mbart
MBART = [
    "ar_AR",
    "cs_CZ",
    "de_DE",
    "en_XX",
    "es_XX",
    "et_EE",
    "fi_FI",
    "fr_XX",
    "gu_IN",
    "hi_IN",
    "it_IT",
    "ja_XX",
    "kk_KZ",
    "ko_KR",
    "lt_LT",
    "lv_LV",
    "my_MM",
    "ne_NP",
    "nl_XX",
    "ro_RO",
    "ru_RU",
    "si_LK",
    "tr_TR",
    "vi_VN",
    "zh_CN",
]

# https://github.com/facebookresearch/fairseq/tree/3d262bb25690e4eb2e7d3c1309b1e9c406ca4b99/examples/multilingual
MBART50 = [
    *MBART,
    *[
        "af_ZA",
        "az_AZ",
        "bn_IN",
        "fa_IR",
        "he_IL",
        "hr_HR",
        "id_ID",
        "ka_GE",
        "km_KH",
        "mk_MK",
        "ml_IN",
        "mn_MN",
        "mr_IN",
        "pl_PL",
        "ps_AF",
        "pt_XX",
        "sv_SE",
        "sw_KE",
        "ta_IN",
        "te_IN",
        "th_TH",
        "tl_XX",
        "uk_UA",
        "ur_PK",
        "xh_ZA",
        "gl_ES",
        "sl_SI",
    ],
]


def is_tag(token: str) -> bool:
    """Return whether a symbol is a language tag: ``__de__``, ``de_DE`` or ``deu_Latn``."""
    if token.startswith("__") and token.endswith("__") and len(token) > 4:
        return True
    language, _, rest = token.partition("_")
    return language.islower() and len(language) in (2, 3) and rest.isalpha() and rest[0].isupper()


def tag_of(language: str, tokens: Mapping[int, str]) -> int | None:
    """Return the id of a language's tag, or None if the model has none.

    Args:
        language: code of the language, or the tag itself.
        tokens: the model's symbols by id.
    """
    forms = [form for form in (language, f"__{language}__") if is_tag(form)]
    return next((number for number, token in tokens.items() if token in forms), None)
