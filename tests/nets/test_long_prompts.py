"""Long prompts and weights: embeddings and a whole picture as torch's nets make them of chunks."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_pipelines
import torch
import unets
from numpy.testing import assert_allclose, assert_array_equal
from tiny_pipelines import LENGTH, PROMPTS, SIZE

from prolora_jax.nets.pipelines import generation
from prolora_jax.nets.pipelines.generation import generate
from prolora_jax.nets.pipelines.pipeline import Pipeline
from prolora_jax.nets.pipelines.pipeline_loading import load_pipeline
from prolora_jax.nets.text.prompts import by_chunks, reweighted
from prolora_jax.nets.text.weighting import Weighting, weighed

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
ROOM = LENGTH - 2  # tokens of a chunk; a letter is one
LONG, AGAINST = "a (drawing:1.4) in ink, folded", "grey (paper:0.5)"
NOISE = np.random.default_rng(0).standard_normal((1, 1, 4, 8, 8), np.float32)
ATOL = 1e-5


class Made(NamedTuple):
    torch: Any
    pipeline: Pipeline
    params: Any


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Made:
    folder = tmp_path_factory.mktemp("made") / "ssd"
    pipe = tiny_pipelines.make_pipeline(folder, "ssd-1b", short=True)
    return Made(pipe, *load_pipeline(folder))


def by_torch(pipe: Any, prompt: str, chunks: int, weighting: Weighting) -> list[torch.Tensor]:
    """Text and summary, by torch's tokenizers and nets, written from what docs/flax.md says."""
    texts, pooled = [], None
    for place in ("", "_2"):
        tokenizer, net = getattr(pipe, f"tokenizer{place}"), getattr(pipe, f"text_encoder{place}")
        ids, weights = [], []
        for text, weight in weighed(prompt, weighting):
            own = tokenizer(text, add_special_tokens=False).input_ids
            ids, weights = ids + own, weights + [weight] * len(own)
        said = []
        for i in range(chunks):
            some, heavy = (side[ROOM * i : ROOM * (i + 1)] for side in (ids, weights))
            spare = ROOM - len(some)
            row = [tokenizer.bos_token_id, *some, *[tokenizer.eos_token_id] * (spare + 1)]
            with torch.no_grad():
                out = net(torch.tensor([row]), output_hidden_states=True)
            hidden = out.hidden_states[-2]
            scaled = hidden * torch.tensor([1.0, *heavy, *[1.0] * (spare + 1)])[None, :, None]
            said.append(scaled * hidden.mean() / scaled.mean())
            if place and i == 0:
                pooled = out.text_embeds
        texts.append(torch.cat(said, dim=1))
    assert pooled is not None
    return [torch.cat(texts, dim=-1), pooled]


def test_embeddings_of_chunks_equal_torch(made):
    prompts = [LONG, "ink"]
    given = made.pipeline.prompts(prompts, weighting="numbers", chunks=3)
    assert given.ids.shape == given.weights.shape == (2, 2, 3, LENGTH)
    embed = jax.jit(made.pipeline.embed, compiler_options=unets.QUICK)
    told = embed(made.params, *given)
    for i, prompt in enumerate(prompts):
        text, pooled = by_torch(made.torch, prompt, 3, "numbers")
        assert_allclose(told.text[i], text[0], rtol=0, atol=1e-5 * float(text.abs().max()))
        assert_allclose(told.pooled[i], pooled[0], rtol=0, atol=1e-5 * float(pooled.abs().max()))
    # As for who tells of one chunk without weights.
    one = made.pipeline.prompts(PROMPTS, weighting="numbers")
    assert one.weights is None
    assert_array_equal(one.ids[:, :, 0], made.pipeline.tokens(PROMPTS))


def test_the_picture_of_a_long_weighted_prompt_equals_torch(made):
    text, pooled = by_torch(made.torch, LONG, 2, "numbers")
    against, without = by_torch(made.torch, AGAINST, 2, "numbers")
    options: dict[str, Any] = {"guidance_scale": 4.0, "num_inference_steps": 2}
    want = made.torch(
        prompt_embeds=text,
        pooled_prompt_embeds=pooled,
        negative_prompt_embeds=against,
        negative_pooled_prompt_embeds=without,
        latents=torch.from_numpy(NOISE[:, 0]).clone(),
        height=SIZE,
        width=SIZE,
        output_type="np",
        **options,
    ).images
    drawn = generate(
        made.pipeline,
        made.params,
        [LONG],
        [0],
        negative=AGAINST,
        noise=NOISE,
        steps=2,
        guidance=4.0,
        size=(SIZE, SIZE),
    )
    assert_allclose(drawn[0], want, rtol=0, atol=ATOL)


def test_prompts_of_a_length_are_drawn_together(made, monkeypatch):
    """A picture does not depend on how long the others' prompts are."""
    seen = []

    def stand_in(*_: Any) -> Any:
        def draw(_: Any, told: Any, start: Any, keys: Any, untold: Any, *__: Any) -> np.ndarray:
            seen.append((told.ids.shape[2], untold.ids.shape[2]))
            first = told.ids[:, 0, 0, 1, None, None, None]
            return np.broadcast_to(first, (len(first), 8, 8, 3))

        return draw

    monkeypatch.setattr(generation, "_compiled", stand_in)
    prompts, said = ["a" + " b" * 20, "b", "c" + " b" * 20, "d"], []
    options: dict[str, Any] = {"size": (8, 8), "steps": 1, "at_once": 4}

    def count(_: str, done: int, total: int) -> None:
        said.append((done, total))

    drawn = generate(made.pipeline, made.params, prompts, [0, 1], progress=count, **options)
    first = [made.pipeline.tokens([prompt])[0, 0, 1] for prompt in prompts]
    assert_array_equal(drawn[:, :, 0, 0, 0], np.array([first] * 2).T)
    assert seen == [(2, 2), (1, 1)]
    assert said == [(0, 8), (4, 8), (8, 8)]
    # A long negative prompt makes the others as long; without guidance it is not used.
    for guidance, expected in ((2.0, [(2, 2)]), (1.0, [(1, 1)])):
        seen.clear()
        generate(
            made.pipeline,
            made.params,
            ["b"],
            [0],
            negative=prompts[0],
            guidance=guidance,
            **options,
        )
        assert seen == expected


def test_how_many_chunks_prompts_need(made):
    models = [made.pipeline.tokenizers] * 2
    prompts = ["", "x" * ROOM, "x" * (ROOM + 1), "x" * 5 * ROOM, f"({'x' * ROOM}:1.5)"]
    assert by_chunks(models, prompts, "", "numbers") == {1: [0, 1, 4], 2: [2], 5: [3]}
    assert by_chunks(models, prompts, "", "off") == {1: [0, 1], 2: [2, 4], 5: [3]}
    assert by_chunks(models, prompts, "y" * 3 * ROOM, "off") == {3: [0, 1, 2, 4], 5: [3]}


def test_weights_of_one_and_of_nothing():
    hidden = jnp.asarray(np.random.default_rng(0).standard_normal((3, 4, 5), np.float32))
    weights = jnp.ones((3, 4)).at[1].set(jnp.array([1.0, 2.0, 0.5, 1.0])).at[2].set(0.0)
    found = reweighted(hidden, weights)
    assert_array_equal(found[0], hidden[0])  # to the bit
    assert_allclose(found[1].mean(), hidden[1].mean(), rtol=1e-5)
    assert_allclose(found[1, 1] / found[1, 0], 2 * hidden[1, 1] / hidden[1, 0], rtol=1e-5)
    assert_array_equal(found[2], jnp.zeros((4, 5)))
    half = reweighted(hidden.astype(jnp.bfloat16), weights)
    assert half.dtype == jnp.bfloat16
