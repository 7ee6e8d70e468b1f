"""What is asked of a model's prompts, kind by kind: which prompts, and what of a picture is right. The table is ``KINDS``.

Every kind turns the instrument's view of one picture into numbers, whoever made the picture: the model, the controls, or the
renderer. A number that has no meaning for a picture is None and not averaged: the colours and the relation of two objects
are those of pictures that show both, as in VISOR (arXiv 2212.10015), so present x colour x relation is about all.
"""

from __future__ import annotations

from mmdit.metrics.prompts.ground_kinds import Ground, NamedGround
from mmdit.metrics.prompts.prompt_kind import PromptKind, Truth, colour_distance
from mmdit.metrics.prompts.scores import Scores
from mmdit.metrics.prompts.subject_kinds import (
    Contradiction,
    DescribedSubject,
    OneSubject,
    RareSubject,
    Recoloured,
    SmallSubject,
    SubjectBesideWords,
    TwoSubjects,
)
from mmdit.metrics.prompts.text_kinds import Geometry, OneObject, TwoObjects, score_objects
from mmdit.names import STYLE_WORD

__all__ = [
    "KINDS",
    "Contradiction",
    "Ground",
    "PromptKind",
    "Scores",
    "Truth",
    "TwoObjects",
    "TwoSubjects",
    "colour_distance",
    "score_objects",
]

# name in the report, under "prompts" and under each control -> what is asked
KINDS: dict[str, PromptKind] = {
    "text.one": OneObject(),
    "text.two": TwoObjects(),
    "text.floor": NamedGround("floor"),
    "text.wall": NamedGround("wall"),
    "subject": OneSubject(named=False),
    "subject_named": OneSubject(named=True),
    "subject_small": SmallSubject(),
    "subject_rare": RareSubject(),
    "subject_described": DescribedSubject(),
    "subject_beside_words": SubjectBesideWords(),
    "subject_recoloured": Recoloured(),
    "subjects.two": TwoSubjects(),
    "style.scene": Ground(STYLE_WORD),
    "style.floor": Ground("floor"),
    "style.wall": Ground("wall"),
    "geometry": Geometry(),
}
