"""The prompts that DreamBooth judges subjects by, with a place for the subject.

Ruiz et al. 2023 (arXiv 2208.12242), appendix; the authors' list is `prompts_and_classes.txt` of
github.com/google/dreambooth. ProLoRA's second table is about these 25, with 4 pictures each.
"""

from typing import Literal

from prolora_jax.errors import Refusal, UsageError

SubjectKind = Literal["object", "live"]

_PLACES = (
    "a {} in the jungle",
    "a {} in the snow",
    "a {} on the beach",
    "a {} on a cobblestone street",
    "a {} on top of pink fabric",
    "a {} on top of a wooden floor",
    "a {} with a city in the background",
    "a {} with a mountain in the background",
    "a {} with a blue house in the background",
    "a {} on top of a purple rug in a forest",
)
_OF_OBJECTS = (
    "a {} with a wheat field in the background",
    "a {} with a tree and autumn leaves in the background",
    "a {} with the Eiffel Tower in the background",
    "a {} floating on top of water",
    "a {} floating in an ocean of milk",
    "a {} on top of green grass with sunflowers around it",
    "a {} on top of a mirror",
    "a {} on top of the sidewalk in a crowded street",
    "a {} on top of a dirt road",
    "a {} on top of a white rug",
)
_OF_LIVE_SUBJECTS = (
    "a {} wearing a red hat",
    "a {} wearing a santa hat",
    "a {} wearing a rainbow scarf",
    "a {} wearing a black top hat and a monocle",
    "a {} in a chef outfit",
    "a {} in a firefighter outfit",
    "a {} in a police outfit",
    "a {} wearing pink glasses",
    "a {} wearing a yellow shirt",
    "a {} in a purple wizard outfit",
)
_PROPERTIES = ("a red {}", "a purple {}", "a shiny {}", "a wet {}", "a cube shaped {}")

TEMPLATES: dict[SubjectKind, tuple[str, ...]] = {
    "object": _PLACES + _OF_OBJECTS + _PROPERTIES,
    "live": _PLACES + _OF_LIVE_SUBJECTS + _PROPERTIES,
}
"""25 of each kind, in the authors' order."""


def concept_prompts(subject: str, kind: SubjectKind) -> tuple[str, ...]:
    """The 25 prompts about a subject.

    Args:
        subject: what an adapter was trained to know, by the words of its training: the token and
            the class, such as `sks dog`.
        kind: whether it is alive, and can wear a hat.

    Raises:
        UsageError: the subject has no words.
    """
    words = " ".join(subject.split())
    if not words:
        raise UsageError(
            "--subject: found no words; expected those that the adapter was trained with, such as "
            "'sks dog'; name the subject",
            code=Refusal.BAD_OPTION,
        )
    return tuple(template.replace("{}", words) for template in TEMPLATES[kind])
