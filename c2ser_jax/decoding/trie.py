"""Constrained decoding: a trie of allowed token sequences that says what may come next.

Shapes: M nodes, W the most children of one node, V vocabulary.
"""

from collections.abc import Sequence

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from c2ser_jax.errors import UserError


class Trie(flax.struct.PyTreeNode):
    """Nodes of allowed prefixes, 0 the empty one, as arrays.

    tokens int32[M, W], the tokens that may follow, -1 where there are fewer; nodes int32[M, W],
    where they lead.
    """

    tokens: jax.Array
    nodes: jax.Array

    def permitted(self, node, vocabulary: int):
        """bool[..., V], True = may follow node int32[...]."""
        flat = node.reshape(-1)
        table = jnp.zeros((flat.shape[0], vocabulary), bool)
        # Out of range on purpose where there is no child: such an index is dropped.
        following = jnp.where(self.tokens[flat] < 0, vocabulary, self.tokens[flat])
        table = table.at[jnp.arange(flat.shape[0])[:, None], following].set(True, mode="drop")
        return table.reshape(*node.shape, vocabulary)

    def follow(self, node, token):
        """The node int32[...] that `token` leads to; the same node for a token not permitted."""
        hit = self.tokens[node] == token[..., None]
        found = jnp.where(hit, self.nodes[node], 0).max(-1)
        return jnp.where(hit.any(-1), found, node)


def build_trie(sequences: Sequence[Sequence[int]], eos: int, vocabulary: int) -> Trie:
    """The trie of token sequences, each of which `eos` ends.

    Raises:
      UserError: there is no sequence, one is empty, or holds an id that the model doesn't have.
    """
    if not sequences or not all(len(sequence) for sequence in sequences):
        raise UserError("constrained decoding needs at least one answer, none of them empty")
    children: list[dict[int, int]] = [{}]
    for sequence in sequences:
        node = 0
        for token in (*(int(token) for token in sequence), int(eos)):
            if not 0 <= token < vocabulary:
                raise UserError(
                    f"an allowed answer holds token {token}, the model has {vocabulary}: "
                    "tokenize the answers with the model's own tokenizer"
                )
            if token not in children[node]:
                children[node][token] = len(children)
                children.append({})
            node = children[node][token]
    width = max(len(table) for table in children)
    tokens = np.full((len(children), width), -1, np.int32)
    nodes = np.zeros((len(children), width), np.int32)
    for node, table in enumerate(children):
        tokens[node, : len(table)] = list(table)
        nodes[node, : len(table)] = list(table.values())
    return Trie(jnp.asarray(tokens), jnp.asarray(nodes))
