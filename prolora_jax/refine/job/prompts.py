"""What pools show: prompts, the adapter's own words among them."""

import json
from collections.abc import Mapping, Sequence

GENERIC = (
    "a portrait of a woman",
    "a portrait of an old man",
    "a child playing in a garden",
    "two people talking at a table",
    "a crowd in a street at night",
    "a dog running on a beach",
    "a cat on a window sill",
    "a horse in a field",
    "a bird on a branch",
    "fish under water",
    "a mountain lake in the morning",
    "a forest in autumn",
    "a desert under a clear sky",
    "waves at a rocky coast",
    "a village in the snow",
    "the skyline of a city",
    "a castle on a hill",
    "a kitchen with wooden furniture",
    "a library with tall shelves",
    "a train at a station",
    "an old car in front of a house",
    "a sailing ship in a storm",
    "a bowl of fruit",
    "a cup of coffee and a book",
    "flowers in a vase",
    "a robot in a workshop",
    "a knight in armour",
    "a dancer on a stage",
    "a space ship over a planet",
    "a map on a wall",
    "an abstract pattern",
    "a close-up of a hand",
)
"""Of many kinds, so that a style shows on all of them and a concept on none."""
MOST_TAGS = 16
"""Of the words that an adapter was trained with."""


def own_words(
    metadata: Mapping[str, str], given: Sequence[str], prompts: Sequence[str]
) -> tuple[str, ...]:
    """Words that an adapter was trained with, beside the prompts that all adapters are shown.

    Args:
        metadata: header strings of the adapter: `modelspec.trigger_phrase`, and
            `ss_tag_frequency` of kohya's scripts.
        given: words of the user, instead of those in the header.
        prompts: that are shown anyway.

    Returns:
        Words, each once, none of them a prompt.
    """
    own = list(given) or [*_phrase(metadata), *_tags(metadata)]
    return tuple(word for word in dict.fromkeys(own) if word not in prompts)


def _phrase(metadata: Mapping[str, str]) -> list[str]:
    phrase = metadata.get("modelspec.trigger_phrase", "").strip()
    return [phrase] if phrase else []


def _tags(metadata: Mapping[str, str]) -> list[str]:
    """The most frequent tags of the training, over all folders of pictures."""
    try:
        folders = json.loads(metadata.get("ss_tag_frequency", "{}"))
    except (ValueError, RecursionError):
        return []
    counts: dict[str, int] = {}
    for tags in folders.values() if isinstance(folders, dict) else ():
        for tag, count in tags.items() if isinstance(tags, dict) else ():
            if isinstance(count, int) and tag.strip():
                counts[tag.strip()] = counts.get(tag.strip(), 0) + count
    return sorted(counts, key=lambda tag: (-counts[tag], tag))[:MOST_TAGS]
