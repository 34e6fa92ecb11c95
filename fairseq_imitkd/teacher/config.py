"""The flags that say where a task's teacher is."""

from dataclasses import dataclass, field
from typing import Any, Optional

from fairseq.dataclass import ChoiceEnum, FairseqDataclass
from omegaconf import II

DTYPES = ("fp32", "fp16", "bf16")
Precision: Any = ChoiceEnum(["auto", *DTYPES, "int8"])
Selection: Any = ChoiceEnum(["fixed", "agreement", "reinforced"])


@dataclass
class TeacherConfig(FairseqDataclass):
    """The flags that every task with a teacher has."""

    teacher_path: Optional[str] = field(
        default=None,
        metadata={
            "help": "the teacher's checkpoint, or several joined by ':' (an ensemble: probabilities are "
            "averaged)"
        },
    )
    teacher_weights: Optional[str] = field(
        default=None,
        metadata={
            "help": "weights of the teachers of --teacher-path in their average: numbers joined by ':' "
            "(default: equal)"
        },
    )
    teacher_dtype: Precision = field(
        default="auto",
        metadata={
            "help": "the teacher's precision (auto: the student's; int8: the student's, but the weights of "
            "linear layers are kept in eight bits)"
        },
    )
    teacher_data: Optional[str] = field(
        default=None,
        metadata={
            "help": "folder with the dictionaries that the teacher was trained with (default: the "
            "checkpoint's folder, then the data folder that the checkpoint names)"
        },
    )
    teacher_allow_globals: Optional[str] = field(
        default=None,
        metadata={
            "help": "types that the teacher's checkpoint may hold beside fairseq's own: module.name,... "
            "(only for files that you trust)"
        },
    )
    teacher_allow_poor: bool = field(
        default=False,
        metadata={
            "help": "train although the teacher does not seem to know the data: it predicts the first "
            "references worse than symbol frequencies do, or hardly better from their own sources than from "
            "other ones (default: refuse)"
        },
    )
    train_subset: str = II("dataset.train_subset")


@dataclass
class WriterTeacherConfig(TeacherConfig):
    """The flags of a teacher whose task writes sentences."""

    teacher_selection: Selection = field(
        default="fixed",
        metadata={
            "help": "weights of several teachers: the same for all sentences (fixed), by each teacher's "
            "probability of the reference (agreement), or one teacher per sentence, drawn by a policy "
            "rewarded when the student's log-probability of the reference rises (reinforced)"
        },
    )
    teacher_device: Optional[str] = field(
        default=None,
        metadata={
            "help": "the teacher's device: cpu, or another GPU such as cuda:1 (default: the student's); "
            "its output matrix is also copied to the student's device"
        },
    )
    init_from_teacher: Optional[str] = field(
        default=None,
        metadata={
            "help": "parts of the (first) teacher that the student starts with: 'embeddings', 'encoder' and "
            "'decoder', joined by commas; the student must have the same widths, heads, norms and "
            "activation; a side's layers are spread evenly over the teacher's, or named: 'encoder:0.2.5'"
        },
    )
    finetune_from_model: Optional[str] = II("checkpoint.finetune_from_model")


@dataclass
class SequenceTeacherConfig(WriterTeacherConfig):
    """The flags of a teacher with an encoder."""

    teacher_encoder_cache: str = field(
        default="0",
        metadata={
            "help": "memory on the teacher's device for its encoder outputs, which repeat every epoch: "
            "512MB, 2GB, ... (0: none)"
        },
    )
    teacher_cache: Optional[str] = field(
        default=None,
        metadata={
            "help": "folder written by imitkd-cache with the teacher's answers on this training data; "
            "replaces --teacher-path"
        },
    )
