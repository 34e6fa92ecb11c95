"""Refuses unknown rows of common.sh's ``learn``, before hours of teacher training: ``rows.py ROW…``."""

import logging
import sys

PLAIN = ("scratch", "continued", "seqkd", "seq_inter", "seqkd_pruned")


def main() -> None:
    logging.disable()  # fairseq logs while it is imported
    from fairseq.criterions import CRITERION_REGISTRY

    import fairseq_imitkd  # noqa: F401 (registers the methods)
    from fairseq_imitkd.criterion import DistillationCriterion

    methods = sorted(
        name for name, made in CRITERION_REGISTRY.items() if issubclass(made, DistillationCriterion)
    )
    known = {*PLAIN, *methods, *(f"seqkd_{method}" for method in methods)}
    for row in sys.argv[1:]:
        if row not in known:
            sys.exit(
                "run.sh: a row must be scratch, seqkd, seq_inter, seqkd_pruned, METHOD or seqkd_METHOD, "
                f"but is '{row}'; METHOD is one of {', '.join(methods)}"
            )


if __name__ == "__main__":
    main()
