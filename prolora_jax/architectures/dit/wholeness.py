"""What a diffusion transformer must have to be a base model: whole stacks, and no unknown ones."""

import re
from collections.abc import Iterable

from prolora_jax.architectures.dit.stacks import DIT_COMPONENTS, DIT_STACKS
from prolora_jax.errors import BaseModelError, Refusal

_KNOWN = tuple(f"{stack.name}." for stack in DIT_STACKS)
_LOOKS_LIKE_A_STACK = re.compile(r"((?:\w+\.)*\w*(?:blocks|layers))\.\d+\.")


def require_whole_stacks(paths: Iterable[str], origin: str) -> None:
    """Refuse a base model whose blocks are not counted from 0 without holes.

    Args:
        paths: of its modules, with component; those of other components are passed over.
        origin: what to call it.

    Raises:
        BaseModelError: a block is missing, or blocks are in a stack that no family has.
    """
    numbers: dict[str, set[int]] = {}
    for path in paths:
        component, _, name = path.partition(".")
        if component not in DIT_COMPONENTS:
            continue
        stack = next((known for known in _KNOWN if name.startswith(known)), None)
        if stack is None:
            _require_no_stack(origin, name)
            continue
        number = name.removeprefix(stack).partition(".")[0]
        if number.isdecimal():
            numbers.setdefault(f"{component}.{stack}", set()).add(int(number))
    for stack, found in numbers.items():
        missing = sorted({*range(max(found) + 1)} - found)
        if missing:
            raise BaseModelError(
                f"{origin}: {stack}{missing[0]}: found no such block, but {stack}{max(found)}; "
                f"expected blocks counted from 0 without holes; fetch the model again",
                code=Refusal.UNREADABLE_BASE,
            )


def _require_no_stack(origin: str, name: str) -> None:
    unknown = _LOOKS_LIKE_A_STACK.match(name)
    if unknown is not None:
        known = ", ".join(stack.name for stack in DIT_STACKS)
        raise BaseModelError(
            f"{origin}: {name}: found blocks in a stack named {unknown[1]}; expected one of "
            f"{known}; give the model in diffusers' naming",
            code=Refusal.UNREADABLE_BASE,
        )
