"""Sampling in a few steps by a latent consistency model (LCM).

The net of such a model, or one with an LCM adapter on it, says in one step where a picture ends;
further steps put fresh noise on that and ask again (Luo et al., arXiv 2310.04378, algorithm 2 of
arXiv 2303.01469; as an adapter: arXiv 2311.05556).

The interface is that of the Flax schedulers of diffusers, so it takes their place in a pipeline.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Float, Int

from prolora_jax.errors import BaseModelError, Refusal, UsageError

Anywhere = Array | np.ndarray
"""Arrays of a device or of the host."""

_SIGMA_DATA = 0.5  # standard deviation of the data, as the distillation takes it
# Other generators give a picture other noise when it is drawn beside others (by vmap).
_GENERATOR = "threefry2x32"
_CHOICES = {
    "beta_schedule": ("scaled_linear", "linear"),
    "prediction_type": ("epsilon", "v_prediction", "sample"),
}
# What else changes the noise or the picture, with its one value here; null counts as unset.
# The rest belongs to other ways of sampling: spacing and offset of their steps, their last step.
_FIXED: Mapping[str, tuple[Any, ...]] = {
    "clip_sample": (False,),
    "rescale_betas_zero_snr": (False,),
    "thresholding": (False,),
    "timestep_type": ("discrete",),
    "trained_betas": (),
    "use_flow_sigmas": (False,),
}


@dataclass(frozen=True)
class LCMConfig:
    """How a net was trained and distilled.

    Attributes:
        num_train_timesteps: times of the training.
        beta_start: variance of the noise added at the first of them.
        beta_end: and at the last.
        beta_schedule: what grows evenly between: its root ("scaled_linear") or itself ("linear").
        prediction_type: what the net predicts: "epsilon", "v_prediction" or "sample".
        original_inference_steps: steps of the solver in the distillation; times are taken from
            them.
        timestep_scaling: by which times are multiplied where output and input are weighed.
    """

    num_train_timesteps: int = 1000
    beta_start: float = 0.00085
    beta_end: float = 0.012
    beta_schedule: str = "scaled_linear"
    prediction_type: str = "epsilon"
    original_inference_steps: int = 50
    timestep_scaling: float = 10.0


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
        return cls(_read(config, origin))

    def create_state(self, key: Anywhere | int = 0) -> LCMState:
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
            key=_typed(key),
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
        _check_pictures(key, shape[:1] or key.shape)
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
        _check_pictures(state.key, sample.shape[:1])
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


def picture_keys(seeds: Sequence[int]) -> Array:
    """A key for each picture, `(batch,)`, each from a seed of its own."""
    return jnp.stack([jax.random.key(seed, impl=_GENERATOR) for seed in seeds])


def fresh_noise(
    keys: Array, t: Int[Array, ""] | int, shape: tuple[int, ...]
) -> Float[Array, "batch ..."]:
    """The noise that a step from time `t` adds.

    Args:
        keys: one for each picture, `(batch,)`.
        t: the time; no two have the same noise.
        shape: of one picture.

    Returns:
        Standard normal; that of a picture depends on nothing but its key and the time.
    """
    return jax.vmap(lambda key: jax.random.normal(jax.random.fold_in(key, t), shape, jnp.float32))(
        keys
    )


def _signal_and_noise(alpha: Array) -> tuple[Array, Array]:
    return jnp.sqrt(alpha), jnp.sqrt(1 - alpha)


def _typed(key: Anywhere | int) -> Array:
    """Any kind of key as jax's typed one, `()` or `(batch,)`."""
    if isinstance(key, int):
        return jax.random.key(key, impl=_GENERATOR)
    typed = jnp.asarray(key)
    if key.dtype == jnp.uint32 and key.shape[-1:] == (2,):
        typed = jax.random.wrap_key_data(typed, impl=_GENERATOR)
    is_key = jnp.issubdtype(typed.dtype, jax.dtypes.prng_key)
    if not is_key or str(jax.random.key_impl(typed)) != _GENERATOR or typed.ndim > 1:
        raise UsageError(
            f"key: found {key.dtype} of shape {key.shape}; expected a seed, or a key of "
            f"{_GENERATOR} for all pictures or for each; make them with picture_keys",
            code=Refusal.BAD_OPTION,
        )
    return typed


def _check_pictures(key: Array, pictures: tuple[int, ...]) -> None:
    if key.ndim == 0 or key.shape != pictures:
        raise UsageError(
            f"key: found keys of shape {key.shape} for latents whose shape begins with "
            f"{pictures}; expected a key for each picture; give the latents' shape to "
            f"set_timesteps, and to create_state one key or as many as there are pictures",
            code=Refusal.BAD_OPTION,
        )


def _read(raw: Mapping[str, Any], origin: str) -> LCMConfig:
    """The fields of a configuration that count here."""
    given = {name: value for name, value in raw.items() if value is not None}
    found = asdict(LCMConfig()) | given

    def must(be_true: bool, name: str, expected: str) -> None:
        if not be_true:
            raise BaseModelError(
                f"{origin}: field {name} is {given.get(name)!r}; expected {expected}; only the "
                f"noise of the Stable Diffusion family is supported; take a model trained with it",
                code=Refusal.UNSUPPORTED_CONFIG,
            )

    for name, allowed in _FIXED.items():
        must(name not in given or given[name] in allowed, name, _listed(allowed))
    # Schedulers of flow matching have none of these, and other noise.
    for name in ("beta_start", "beta_end", "beta_schedule"):
        must(name in given, name, "a value")
    for name, allowed in _CHOICES.items():
        must(found[name] in allowed, name, _listed(allowed))
    for name in ("beta_start", "beta_end"):
        value = found[name]
        must(isinstance(value, float) and 0 < value < 1, name, "a number between 0 and 1")
    train, steps = found["num_train_timesteps"], found["original_inference_steps"]
    must(isinstance(train, int) and train > 0, "num_train_timesteps", "a positive number")
    are_steps = isinstance(steps, int) and 1 <= steps <= train
    must(are_steps, "original_inference_steps", f"1 to {train}")
    must(isinstance(found["timestep_scaling"], int | float), "timestep_scaling", "a number")
    return LCMConfig(**{field.name: found[field.name] for field in fields(LCMConfig)})


def _listed(allowed: tuple[Any, ...]) -> str:
    return " or ".join(map(repr, allowed)) or "null"
