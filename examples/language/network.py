"""A decoder-only transformer over bytes, low-rank adapters, and rounding to few bits."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

VOCABULARY = 256


class Transformer(nn.Module):
    """GPT-2's architecture (Radford et al., 2019), with tied input and output embeddings.

    It has LayerNorm before attention and MLP, learned positions and GELU. It takes bytes (batch,
    length) and returns float32 logits (batch, length, 256) of the byte that follows each of them.

    Attributes:
      width: The size of the embeddings, a multiple of ``heads``.
      depth: The number of blocks.
      heads: The number of attention heads.
      length: The maximum length of the input.
      dropout: Dropout of the embeddings and of what each block adds to them.
    """

    width: int
    depth: int
    heads: int
    length: int
    dropout: float = 0.0

    @nn.compact
    def __call__(self, tokens: jax.Array, *, is_training: bool) -> jax.Array:
        def drop(x):
            return nn.Dropout(self.dropout, deterministic=not is_training)(x)

        small = nn.initializers.normal(0.02)
        of_residuals = nn.initializers.normal(0.02 / (2 * self.depth) ** 0.5)
        embed = nn.Embed(VOCABULARY, self.width, embedding_init=small)
        positions = self.param("positions", small, (self.length, self.width))
        x = drop(embed(tokens.astype(jnp.int32)) + positions[None, : tokens.shape[1]])
        for block in range(self.depth):
            y = nn.LayerNorm()(x)
            qkv = nn.DenseGeneral(
                (3, self.heads, self.width // self.heads), kernel_init=small, name=f"qkv_{block}"
            )(y)
            y = jax.nn.dot_product_attention(
                qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2], is_causal=True
            )
            y = y.reshape(x.shape)
            x += drop(nn.Dense(self.width, kernel_init=of_residuals, name=f"mix_{block}")(y))
            y = nn.Dense(4 * self.width, kernel_init=small, name=f"up_{block}")(nn.LayerNorm()(x))
            y = nn.gelu(y)
            x += drop(nn.Dense(self.width, kernel_init=of_residuals, name=f"down_{block}")(y))
        return embed.attend(nn.LayerNorm()(x))


def is_matrix(path: tuple, leaf: jax.Array) -> bool:
    """Whether a parameter is a matrix in a block, which adapters adapt."""
    return leaf.ndim >= 2 and path[-1].key == "kernel"


def make_adapters(params: Any, rank: int, key: jax.Array) -> dict[str, Any]:
    """Make the factors a and b of LoRA (arXiv 2106.09685) for each matrix, by its path.

    Initially b is 0, so that the model is unchanged. A kernel with more than two axes is a matrix
    from its first axis to all others.
    """
    adapters = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        if is_matrix(path, leaf):
            key, own = jax.random.split(key)
            inputs, outputs = leaf.shape[0], leaf.size // leaf.shape[0]
            a = jax.random.normal(own, (inputs, rank)) / inputs**0.5
            adapters[jax.tree_util.keystr(path)] = {"a": a, "b": jnp.zeros((rank, outputs))}
    return adapters


def adapted(params: Any, adapters: dict[str, Any], scale: float = 2.0) -> Any:
    """Add ``scale`` · a b to each matrix. The scale is LoRA's α / rank."""

    def add(path, leaf):
        own = adapters.get(jax.tree_util.keystr(path))
        return leaf if own is None else leaf + scale * (own["a"] @ own["b"]).reshape(leaf.shape)

    return jax.tree_util.tree_map_with_path(add, params)


def rounded(params: Any, bits: int = 4) -> Any:
    """Round every array with two or more axes to the nearest of 2^bits − 1 symmetric levels.

    Each output has a separate scale, max |w| / (2^(bits − 1) − 1), as has each row of the
    embeddings. Biases and LayerNorms are not rounded. No data is used.
    """
    top = 2 ** (bits - 1) - 1

    def round_one(path, w):
        if w.ndim < 2:
            return w
        inputs = 1 if path[-1].key == "embedding" else 0
        scale = jnp.max(jnp.abs(w), axis=inputs, keepdims=True) / top
        scale = jnp.where(scale > 0, scale, 1)
        return jnp.round(w / scale) * scale

    return jax.tree_util.tree_map_with_path(round_one, params)
