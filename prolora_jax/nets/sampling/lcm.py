"""Sampling in a few steps by a latent consistency model (LCM).

The net of such a model, or one with an LCM adapter on it, says in one step where a picture ends;
further steps put fresh noise on that and ask again (Luo et al., arXiv 2310.04378, algorithm 2 of
arXiv 2303.01469; as an adapter: arXiv 2311.05556).

The interface is that of the Flax schedulers of diffusers, so it takes their place in a pipeline.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Float, Int

from prolora_jax.errors import Refusal, UsageError
from prolora_jax.nets.sampling.lcm_config import LCMConfig, read_config
from prolora_jax.nets.sampling.noise import Key, check_pictures, fresh_noise, typed_key
from prolora_jax.nets.unet.unet import Anywhere

_SIGMA_DATA = 0.5  # standard deviation of the data, as the distillation takes it


class LCMState(struct.PyTreeNode):
    """What a loop hands on; `step` changes nothing in it.

    Attributes:
        alphas: what is left of the variance of a picture at each time of the training.
        init_noise_sigma: standard deviation of the noise to start from: 1.
        timesteps: falling times of this run, none before `set_timesteps`.
        key: one random key for each picture; before `set_timesteps` it may be one for all.
    """

    # Not typed by shape: jax puts other things than arrays here, such as axes and shardings.
    alphas: Any
    init_noise_sigma: Any
    timesteps: Any
    key: Any


class LCMOutput(NamedTuple):
    """Latents after a step, `(batch, channels, height, width)` in float32, and the state."""

    prev_sample: Array
    state: LCMState

    def to_tuple(self) -> tuple[Array, LCMState]:
        """The same without names."""
        return self.prev_sample, self.state


@dataclass(frozen=True)
class LCMScheduler:
    """Where to step, and what a step does.

    Attributes:
        config: how the net was trained.
    """

    config: LCMConfig = LCMConfig()

    @classmethod
    def from_diffusers(
        cls, config: Mapping[str, Any], *, origin: str = "scheduler_config.json"
    ) -> "LCMScheduler":
        """For a net that came with this configuration of any scheduler.

        Args:
            config: the content of a `scheduler_config.json`. What only other ways of sampling
                use is passed over.
            origin: what to call it in messages.

        Returns:
            The scheduler.

        Raises:
            BaseModelError: the noise it describes is not of the Stable Diffusion family.
        """
        return cls(read_config(config, origin))

    def create_state(self, key: Key = 0) -> LCMState:
        """The state before a run.

        Args:
            key: of the noise between steps: a seed or a key for all pictures, from which each
                gets its own by its row; or a key for each, `(batch,)` (`picture_keys`) or
                `(batch, 2)` of uint32. Only with the latter is a picture the same alone and
                among others, whatever its row.

        Returns:
            A state without times.

        Raises:
            UsageError: `key` is none of these.
        """
        config = self.config
        power = 0.5 if config.beta_schedule == "scaled_linear" else 1.0
        ends = config.beta_start**power, config.beta_end**power
        betas = np.linspace(*ends, config.num_train_timesteps) ** (1 / power)
        return LCMState(
            alphas=jnp.asarray(np.cumprod(1 - betas), jnp.float32),
            init_noise_sigma=jnp.float32(1),
            timesteps=jnp.zeros(0, jnp.int32),
            key=typed_key(key),
        )

    def set_timesteps(
        self, state: LCMState, num_inference_steps: int, shape: tuple[int, ...] = ()
    ) -> LCMState:
        """The state for a run.

        Args:
            state: of `create_state`.
            num_inference_steps: calls of the net.
            shape: of the latents, pictures first; may be left out where each has a key already.

        Returns:
            A state with times and a key for each picture.

        Raises:
            UsageError: more steps than the distillation had, or another number of pictures
                than of keys.
        """
        most = self.config.original_inference_steps
        if not 1 <= num_inference_steps <= most:
            raise UsageError(
                f"num_inference_steps: found {num_inference_steps}; expected 1 to {most}, the "
                f"steps of the distillation; take fewer",
                code=Refusal.BAD_OPTION,
            )
        key = state.key
        if key.ndim == 0 and shape:
            key = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(shape[0]))
        check_pictures(key, shape[:1] or key.shape)
        apart = self.config.num_train_timesteps // most
        falling = np.arange(most, 0, -1) * apart - 1
        # As torch's diffusers rounds, whose times the published adapters are shown with.
        places = np.floor(np.linspace(0, most, num_inference_steps, endpoint=False))
        return state.replace(timesteps=jnp.asarray(falling[places.astype(int)], jnp.int32), key=key)

    def scale_model_input(self, state: LCMState, sample: Any, t: Any) -> Any:
        """`sample` as it is; schedulers of other kinds scale it for the net."""
        return sample

    def step(
        self,
        state: LCMState,
        model_output: Float[Anywhere, "batch channels height width"],
        t: Int[Anywhere, ""] | int,
        sample: Float[Anywhere, "batch channels height width"],
    ) -> LCMOutput:
        """From time `t` to the next of the run; from the last to a picture without noise.

        Args:
            state: of `set_timesteps`.
            model_output: what the net predicts of `sample`.
            t: one of the run's times.
            sample: noisy latents.

        Returns:
            Latents, computed in float32 whatever is given, and the state as it was.

        Raises:
            UsageError: times are not set, or for another number of pictures.
        """
        if not state.timesteps.size:
            raise UsageError(
                "state: found no times; expected some; call set_timesteps first",
                code=Refusal.BAD_OPTION,
            )
        check_pictures(state.key, sample.shape[:1])
        t = jnp.asarray(t, jnp.int32)
        sample, output = (jnp.asarray(x, jnp.float32) for x in (sample, model_output))
        passed = jnp.sum(state.timesteps >= t)
        steps = state.timesteps.size
        until = state.timesteps[jnp.minimum(passed, steps - 1)]

        signal, noise = _signal_and_noise(state.alphas[t])
        clean = {
            "epsilon": lambda: (sample - noise * output) / signal,
            "v_prediction": lambda: signal * sample - noise * output,
            "sample": lambda: output,
        }[self.config.prediction_type]()
        # At time 0 this has to be the input itself, which makes a net a consistency model.
        scaled = t.astype(jnp.float32) * self.config.timestep_scaling
        variance = scaled**2 + _SIGMA_DATA**2
        clean = scaled / jnp.sqrt(variance) * clean + _SIGMA_DATA**2 / variance * sample

        signal, noise = _signal_and_noise(state.alphas[until])
        noisy = signal * clean + noise * fresh_noise(state.key, t, sample.shape[1:])
        return LCMOutput(jnp.where(passed < steps, noisy, clean), state)


def _signal_and_noise(alpha: Array) -> tuple[Array, Array]:
    return jnp.sqrt(alpha), jnp.sqrt(1 - alpha)
