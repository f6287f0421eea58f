"""Checkpoints of equal shapes: which one a name or a header string says, as far as it says one.

Shapes tell an architecture. What was tuned, edited or distilled from a model has the same, so that
only words tell them apart; where words say nothing, nothing is concluded.
"""

import re

# The first that fits counts: what is more particular stands before what it was made from.
_WORDS = (
    (r"krea[-_ ]?2", "Krea 2"),
    (r"krea", "FLUX.1 Krea dev"),
    (r"kontext", "FLUX.1 Kontext dev"),
    (r"flux.*fill", "FLUX.1 Fill dev"),
    (r"schnell", "FLUX.1 schnell"),
    (r"chroma", "Chroma"),
    (r"flex[-_. ]?[12]", "Flex"),
    (r"klein[-_ ]?base", "FLUX.2 klein base"),
    (r"klein", "FLUX.2 klein"),
    (r"flux[-_. ]?2", "FLUX.2 dev"),
    (r"flux[-_. ]?1?[-_. ]?dev", "FLUX.1 dev"),
    (r"qwen[-_ ]?image[-_ ]?edit.*2511", "Qwen-Image-Edit 2511"),
    (r"qwen[-_ ]?image[-_ ]?edit.*2509", "Qwen-Image-Edit 2509"),
    (r"qwen[-_ ]?image[-_ ]?edit", "Qwen-Image-Edit"),
    (r"qwen[-_ ]?image[-_ ]?layered", "Qwen-Image-Layered"),
    (r"qwen[-_ ]?image", "Qwen-Image"),
    (r"z[-_ ]?image.*turbo", "Z-Image Turbo"),
    (r"z[-_ ]?image", "Z-Image"),
    (r"wan[-_ ]?2[._]?2", "Wan 2.2"),
    (r"wan[-_ ]?2[._]?1", "Wan 2.1"),
    (r"skyreels", "SkyReels"),
    (r"hunyuan[-_ ]?video[-_ ]?1[._]5", "HunyuanVideo 1.5"),
    (r"hunyuan[-_ ]?video", "HunyuanVideo"),
    (r"pony[-_ ]?v7", "Pony V7"),
    (r"auraflow", "AuraFlow"),
    (r"anima", "Anima"),
)


def checkpoint_said(words: str) -> str | None:
    """What people call the checkpoint that a name or a header string says; None where it says none.

    Args:
        words: `black-forest-labs/FLUX.1-Krea-dev`, a folder's name, ...
    """
    return next((name for said, name in _WORDS if re.search(said, words.lower())), None)
