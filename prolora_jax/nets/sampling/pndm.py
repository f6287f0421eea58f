"""PNDM: pseudo linear multi-steps, if asked for after pseudo Runge-Kutta ones.

Source: Liu et al., arXiv 2202.09778, equations 9 (Runge-Kutta), 11 (transfer), 12 (multi-step).
"""

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import numpy as np
from jaxtyping import Int

from prolora_jax.errors import Refusal, UsageError
from prolora_jax.nets.sampling.spacing import times
from prolora_jax.nets.sampling.table import Form, StepTable, as_table, forms, picture_weights
from prolora_jax.nets.sampling.training_noise import TrainingNoise

_ORDER = 4
_SHARES = 1 / 6, 1 / 3, 1 / 3, 1 / 6
_WEIGHTS = (
    (1.0,),
    (3 / 2, -1 / 2),
    (23 / 12, -16 / 12, 5 / 12),
    (55 / 24, -59 / 24, 37 / 24, -9 / 24),
)


def pndm(noise: TrainingNoise, config: Mapping[str, Any], count: int) -> StepTable:
    """The table of a run, longer than `count`: the first steps ask the net twice or more.

    Args:
        noise: of the training.
        config: fields `timestep_spacing`, `steps_offset`, `set_alpha_to_one` and `skip_prk_steps`,
            with torch's defaults.
        count: number of steps.

    Raises:
        UsageError: fewer steps than the Runge-Kutta ones.
    """
    at = times(config, count).round().astype(int)
    apart = noise.num_train_timesteps // count
    run = _Run(noise, bool(config.get("set_alpha_to_one", False)))
    if config.get("skip_prk_steps", False):
        run.multi_steps(np.concatenate((at[:1], at[1:2], at[1:])), apart, begins_twice=True)
    else:
        if count < _ORDER:
            raise UsageError(
                f"steps: found {count}; expected {_ORDER} or more, with which this pipeline's PNDM "
                f"begins (skip_prk_steps is false); take more",
                code=Refusal.BAD_OPTION,
            )
        run.runge_kutta(at[:_ORDER], apart)
        run.multi_steps(at[_ORDER - 1 :], apart, begins_twice=False)
    told = np.asarray(run.told)
    kept = noise.kept[told]
    return as_table(
        run.rows, times=told, picture=picture_weights(noise, np.sqrt(kept), np.sqrt(1 - kept))
    )


class _Run:
    """Steps as they are written down: the latents, where a step began, three answers, and a sum."""

    def __init__(self, noise: TrainingNoise, ends_at_one: bool):
        self.noise, self.kept = noise, noise.kept
        self.ends = 1.0 if ends_at_one else self.kept[0]
        self.rows: list[list[Form]] = []
        self.told: list[int] = []
        self.known = 0
        self.x, self.began, *earlier, self.sum, self.answer, _ = forms(6)
        self.earlier: list[Form] = earlier

    def runge_kutta(self, at: Int[np.ndarray, " n"], apart: int) -> None:
        """From each time to the next by four calls; the first is remembered for the multi-steps."""
        half = apart // 2
        for begin, end in pairwise(map(int, at)):
            middle = end + half
            told, until = (begin, middle, middle, end), (begin - half, middle, end, end)
            for call, share in enumerate(_SHARES):
                first = call == 0
                anchor = self.x if first else self.began
                total = share * self.answer + (0 if first else 1) * self.sum
                used = total if call == len(_SHARES) - 1 else self.answer
                self.told.append(told[call])
                moved = self._moved(anchor, used, begin, until[call])
                self.rows.append([moved, anchor, *self._remembered(first), total])

    def multi_steps(self, at: Int[np.ndarray, " n"], apart: int, *, begins_twice: bool) -> None:
        """A call for each step, but for two at the first if nothing is known before it."""
        for place, time in enumerate(at):
            second = begins_twice and place == 1
            anchor, begin, until = self.x, int(time), int(time) - apart
            if second:  # the step that was taken first, once more with the mean of both answers
                anchor, begin, until = self.began, int(time) + apart, int(time)
                used = (self.answer + self.earlier[0]) / 2
            else:
                known = (self.answer, *self.earlier)[: min(self.known, _ORDER - 1) + 1]
                used = sum(
                    (w * form for w, form in zip(_WEIGHTS[len(known) - 1], known, strict=True)),
                    np.zeros_like(self.answer),
                )
            self.told.append(int(time))
            moved = self._moved(anchor, used, begin, until)
            self.rows.append([moved, self.x, *self._remembered(not second), self.sum])

    def _remembered(self, keep: bool) -> list[Form]:
        if not keep:
            return self.earlier
        self.known += 1
        return [self.answer, *self.earlier[:2]]

    def _moved(self, x: Form, said: Form, begin: int, until: int) -> Form:
        """Equation 11: from one time to another by what the net says of the noise."""
        a, left = self.kept[begin], self._left(until)
        if self.noise.prediction_type == "v_prediction":
            said = np.sqrt(a) * said + np.sqrt(1 - a) * x
        turn = a * np.sqrt(1 - left) + np.sqrt(a * (1 - a) * left)
        return np.sqrt(left / a) * x - (left - a) / turn * said

    def _left(self, time: int) -> float:
        return float(self.kept[time]) if time >= 0 else self.ends
