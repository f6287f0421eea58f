"""The loop's side of every sampler (`table.py`): four calls, as diffusers' schedulers have them.

The interface is that of the Flax schedulers that diffusers had, so a sampler takes their place in a
pipeline (`stock_pipeline`).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Float, Num

from prolora_jax.errors import Refusal, UsageError
from prolora_jax.nets.sampling.noise import Key, check_pictures, fresh_noise, typed_key
from prolora_jax.nets.sampling.table import StepTable
from prolora_jax.nets.sampling.training_noise import TrainingNoise
from prolora_jax.nets.unet.unet import Anywhere

_USUAL_STEPS = 25
MakeTable = Callable[[TrainingNoise, Mapping[str, Any], int], StepTable]


class SamplerState(struct.PyTreeNode):
    """What a loop hands on.

    Attributes:
        timesteps: falling times of this run, none before `set_timesteps`.
        init_noise_sigma: standard deviation of the noise to start from.
        table: the numbers of the run, float32, by the names of `StepTable`.
        key: one random key for each picture; before `set_timesteps` it may be one for all.
        taken: steps that were taken.
        carried: what is remembered beside the latents, `(k - 1, batch, channels, height, width)`.
    """

    # Not typed by shape: jax puts other things than arrays here, such as axes and shardings.
    timesteps: Any
    init_noise_sigma: Any
    table: Any
    key: Any
    taken: Any
    carried: Any


class SamplerOutput(NamedTuple):
    """Latents after a step, `(batch, channels, height, width)` in float32, and the state."""

    prev_sample: Array
    state: SamplerState

    def to_tuple(self) -> tuple[Array, SamplerState]:
        """The same without names."""
        return self.prev_sample, self.state


@dataclass(frozen=True)
class TableSampler:
    """Where to step, and what a step does.

    Attributes:
        name: of `samplers.SAMPLERS`.
        config: how the net was trained.
        fields: of the scheduler's configuration, what the table is made of, sorted.
        make: writes the table of a run.
        clip: the largest number of a picture that the net may mean; None for any.
        adds_noise: whether steps add noise.
    """

    name: str
    config: TrainingNoise
    fields: tuple[tuple[str, Any], ...]
    make: MakeTable
    clip: float | None = None
    adds_noise: bool = False

    def table(self, count: int) -> StepTable:
        """The numbers of a run.

        Args:
            count: number of steps.

        Raises:
            UsageError: fewer steps than the sampler begins with, or more than times.
        """
        most = self.config.num_train_timesteps
        if not 1 <= count <= most:
            raise UsageError(
                f"num_inference_steps: found {count}; expected 1 to {most}, the times that the net "
                f"was trained for; take fewer",
                code=Refusal.BAD_OPTION,
            )
        given = {"num_train_timesteps": most, **dict(self.fields)}
        return self.make(self.config, given, count)

    def create_state(self, key: Key = 0) -> SamplerState:
        """The state before a run.

        Args:
            key: of the noise between steps, where the sampler adds any: a seed or a key for all
                pictures, from which each gets its own by its row; or a key for each. Only with the
                latter is a picture the same alone and among others.

        Returns:
            A state without times; its `init_noise_sigma` is that of a usual run.

        Raises:
            UsageError: `key` is none of these.
        """
        # Half of the times always have room, however a pipeline places its steps.
        table = self.table(min(_USUAL_STEPS, self.config.num_train_timesteps // 2))
        return SamplerState(
            timesteps=jnp.zeros(0, jnp.float32),
            init_noise_sigma=jnp.float32(table.start),
            table={},
            key=typed_key(key),
            taken=jnp.int32(0),
            carried=jnp.zeros((0, 0), jnp.float32),
        )

    def set_timesteps(
        self, state: SamplerState, num_inference_steps: int, shape: tuple[int, ...] = ()
    ) -> SamplerState:
        """The state for a run.

        Args:
            state: of `create_state`.
            num_inference_steps: number of steps.
            shape: of the latents, pictures first.

        Returns:
            A state with times, a key for each picture, and room to remember.

        Raises:
            UsageError: too few steps or too many, or another number of pictures than of keys.
        """
        table = self.table(num_inference_steps)
        key = state.key
        if key.ndim == 0 and shape:
            key = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(shape[0]))
        check_pictures(key, shape[:1] or key.shape)
        whole = np.array_equal(table.times, table.times.round())
        names = ("shown", "picture", "update", "noise")
        return SamplerState(
            timesteps=jnp.asarray(table.times, jnp.int32 if whole else jnp.float32),
            init_noise_sigma=jnp.float32(table.start),
            table={name: jnp.asarray(getattr(table, name), jnp.float32) for name in names},
            key=key,
            taken=jnp.int32(0),
            carried=jnp.zeros((table.update.shape[1] - 1, *shape), jnp.float32),
        )

    def scale_model_input(
        self, state: SamplerState, sample: Float[Anywhere, "*latents"], t: Any
    ) -> Float[Array, "*latents"]:
        """The latents as the net sees them."""
        return sample * state.table["shown"][state.taken]

    def step(
        self,
        state: SamplerState,
        model_output: Float[Anywhere, "batch channels height width"],
        t: Num[Anywhere, ""] | int | float,
        sample: Float[Anywhere, "batch channels height width"],
    ) -> SamplerOutput:
        """To the next time of the run; from the last to a picture without noise.

        Args:
            state: of `set_timesteps`, or of the step before.
            model_output: what the net predicts of `sample`.
            t: the step's time, by which its noise is drawn; steps come in the run's order.
            sample: noisy latents.

        Returns:
            Latents, computed in float32 whatever is given, and the state after the step.

        Raises:
            UsageError: times are not set, or for another number of pictures.
        """
        if not state.timesteps.size:
            raise UsageError(
                "state: found no times; expected some; call set_timesteps first",
                code=Refusal.BAD_OPTION,
            )
        check_pictures(state.key, sample.shape[:1])
        row = {name: values[state.taken] for name, values in state.table.items()}
        sample, output = (jnp.asarray(x, jnp.float32) for x in (sample, model_output))
        picture = row["picture"][0] * sample + row["picture"][1] * output
        if self.clip is not None:
            picture = picture.clip(-self.clip, self.clip)
        terms = [sample, *state.carried, output, picture]
        # Sums of scaled arrays, not a product of matrices, which accelerators round.
        zero = jnp.zeros_like(sample)
        after = [
            sum((weights[i] * term for i, term in enumerate(terms)), zero)
            for weights in row["update"]
        ]
        latents = after[0]
        if self.adds_noise:
            latents += row["noise"] * fresh_noise(state.key, jnp.int32(t), sample.shape[1:])
        carried = jnp.stack(after[1:]) if len(after) > 1 else state.carried
        return SamplerOutput(latents, state.replace(taken=state.taken + 1, carried=carried))
