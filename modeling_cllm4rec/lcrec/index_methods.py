"""Methods for semantic IDs other than RQ-VAE: vanilla, random, co-occurrence; co-occurrence vectors next to text vectors."""

from __future__ import annotations

import logging

import numpy as np
import numpy.typing as npt
import torch
from scipy import sparse
from scipy.linalg import eigh
from scipy.sparse.linalg import eigsh

from modeling_cllm4rec.core.errors import InputError
from modeling_cllm4rec.corpora.data_folder import Histories
from modeling_cllm4rec.corpora.interaction_matrix import interaction_matrix
from modeling_cllm4rec.lcrec.modeling_rqvae import k_means
from modeling_cllm4rec.lcrec.semantic_ids import SemanticIds, codes_with_room

logger = logging.getLogger(__name__)

DENSE_UP_TO = 1000
"""Largest graph, in items, whose eigenvectors are computed from a dense matrix, which is faster for small ones."""
DEGREE_PRIOR = 5.0
"""Added to each item's degree where its spectral vector is quantized."""


def vanilla_semantic_ids(num_items: int) -> SemanticIds:
    """Return a token of its own for each item: one level, as many codes as items ("Vanilla ID" in figure 2 of LC-Rec).

    Hua et al. (arXiv 2305.06569) call it independent indexing. Items share nothing, so a rare item has a token that was rarely
    trained.

    >>> vanilla_semantic_ids(3).codes.tolist()
    [[0], [1], [2]]
    """
    return SemanticIds(np.arange(num_items, dtype=np.int32)[:, None], num_items)


def random_codes(num_items: int, num_levels: int, codebook_size: int, seed: int) -> npt.NDArray[np.int32]:
    """Return (J, H) random codes, all rows different: the control for semantic IDs with a meaning."""
    generator = np.random.default_rng(seed)
    if codebook_size**num_levels <= 1 << 24:
        numbers = generator.permutation(codebook_size**num_levels)[:num_items]
        return np.stack(np.unravel_index(numbers, (codebook_size,) * num_levels), axis=1).astype(np.int32)
    codes = np.zeros((0, num_levels), dtype=np.int32)
    while len(codes) < num_items:  # too many to list them all: draw until all differ
        drawn = generator.integers(0, codebook_size, (num_items, num_levels), dtype=np.int32)
        codes = np.concatenate([codes, drawn])
        codes = codes[np.sort(np.unique(codes, axis=0, return_index=True)[1])][:num_items]
    return codes


def co_occurrence_semantic_ids(
    histories: Histories, num_items: int, num_levels: int, codebook_size: int, seed: int = 0
) -> SemanticIds:
    """Return semantic IDs in which items of the same users share a prefix (collaborative indexing of P5-CID).

    After Hua et al., "How to Index Item IDs for Recommendation Foundation Models" (arXiv 2305.06569): the graph of items,
    whose edges count the users who chose both items, is split by spectral clustering. A cluster that is too large for a leaf
    is split again, from its own part of the graph. In a leaf, items are numbered.

    Differences from the paper: the number of clusters of a split and the most items of a leaf, two settings there, are both
    `codebook_size`, and a level's tokens are the same in all clusters. All semantic IDs have the same number of levels: for
    an item in a leaf nearer to the root, the levels between have code 0. The capacity of a cluster is the number of semantic
    IDs below it; overflow goes to the nearest non-full cluster. Items of a (part of the) graph without any edge are split
    evenly, in their order; an item without edges among others is at equal distance from all clusters.

    Args:
        histories: (I,) item indices, of training only.
        num_items: size J of the catalogue.
        num_levels: most levels H; fewer are used where all leaves are nearer to the root.
        codebook_size: K.
        seed: start of the random numbers of the clustering.

    Returns:
        The semantic IDs, the same for equal arguments.

    Raises:
        InputError: no two items have a user in common, or there are more items than semantic IDs.

    >>> histories = Histories(np.array([0, 2, 4]), np.array([0, 2, 1, 3], dtype=np.int32))
    >>> co_occurrence_semantic_ids(histories, 4, num_levels=2, codebook_size=2).codes[[0, 2]].tolist()
    [[0, 0], [0, 1]]
    """
    if num_items > codebook_size**num_levels:
        raise InputError(
            f"{num_items} items are more than the {codebook_size**num_levels} semantic IDs of {num_levels} levels of "
            f"{codebook_size} codes; raise num_levels or codebook_size"
        )
    graph = co_occurrence_graph(histories, num_items)
    if not graph.nnz:
        raise InputError(
            f"method is 'co-occurrence', but none of {len(histories.indptr) - 1} training histories has two different items; use "
            "method 'random' or 'vanilla', or data with longer histories"
        )
    isolated = int((np.diff(graph.indptr) == 0).sum())
    logger.info("co-occurrence: %d edges, %d of %d items without any", graph.nnz // 2, isolated, num_items)
    codes = np.zeros((num_items, num_levels), dtype=np.int32)
    waiting, depth = [(0, np.arange(num_items))], 1
    while waiting:
        level, items = waiting.pop()
        depth = max(depth, level + 1)
        if len(items) <= codebook_size:
            codes[items, -1] = np.arange(len(items))
            continue
        room = codebook_size ** (num_levels - level - 1)
        clusters = _clusters(graph[items][:, items], codebook_size, room, seed)
        codes[items, level] = clusters
        waiting += [(level + 1, items[clusters == cluster]) for cluster in np.unique(clusters)]
    return SemanticIds(np.delete(codes, slice(depth - 1, num_levels - 1), axis=1), codebook_size)


def with_co_occurrence(embeddings: np.ndarray, histories: Histories, share: float, width: int = 96) -> np.ndarray:
    """Concatenate text vectors with co-occurrence vectors, so that quantization uses the similarity of both.

    The paper quantizes texts alone. The second part is the spectral embedding of the co-occurrence graph A of training
    histories: leading eigenvectors of D^-1/2 A D^-1/2, each times the root of its eigenvalue, where D has the degrees plus
    `DEGREE_PRIOR`, so that an item with one neighbour does not dominate a dimension. Rows of both parts have length 1, those
    of the texts after their mean was subtracted; an item without edges has zeros in the second part.

    Args:
        embeddings: (J, d) of the texts; histories: of training only.
        share: weight of the second part in a squared distance, in (0, 1); width: most eigenvectors.

    Returns:
        (J, d + min(width, J - 1)) float32.

    >>> histories = Histories(np.array([0, 2, 4]), np.array([0, 2, 1, 3], dtype=np.int32))
    >>> vectors = with_co_occurrence(np.eye(4, dtype=np.float32), histories, share=0.5, width=2)
    >>> vectors.shape, (vectors @ vectors.T).diagonal().round(5).tolist()
    ((4, 6), [1.0, 1.0, 1.0, 1.0])
    """
    graph = co_occurrence_graph(histories, len(embeddings))
    scale = (np.asarray(graph.sum(axis=1)) + DEGREE_PRIOR) ** -0.5
    normalized = sparse.csr_array(graph * scale[:, None] * scale[None, :])
    values, vectors = _leading_eigenvectors(normalized, min(width, len(embeddings) - 1))
    collaborative = _rows_of_length_one(vectors * np.sqrt(np.clip(values, 0, None)))
    texts = _rows_of_length_one(embeddings - embeddings.mean(0))
    return np.concatenate([np.sqrt(1 - share) * texts, np.sqrt(share) * collaborative], axis=1).astype(np.float32)


def co_occurrence_graph(histories: Histories, num_items: int) -> sparse.csr_array:
    """Return the (J, J) numbers of users who chose both of two items, 0 on the diagonal.

    >>> histories = Histories(np.array([0, 2, 5]), np.array([0, 1, 0, 1, 2], dtype=np.int32))
    >>> co_occurrence_graph(histories, 3).toarray().tolist()
    [[0.0, 2.0, 1.0], [2.0, 0.0, 1.0], [1.0, 1.0, 0.0]]
    """
    chosen = interaction_matrix(Histories(histories.indptr.copy(), histories.items), num_items)
    chosen.sum_duplicates()  # works in place and would change the caller's array
    chosen.data[:] = 1  # a user who chose an item twice counts once
    graph = sparse.csr_array(chosen.T @ chosen)
    graph.setdiag(0)
    graph.eliminate_zeros()
    return graph


def _clusters(graph: sparse.csr_array, count: int, room: int, seed: int) -> npt.NDArray[np.int32]:
    """Return the (n,) clusters of n > `count` nodes, each with `room` nodes at most, by normalized spectral clustering.

    Ng, Jordan and Weiss, "On Spectral Clustering" (2001): rows of the leading eigenvectors of D^-1/2 A D^-1/2, scaled to
    length 1, under k-means. A node without an edge has a row of zeros.
    """
    nodes = graph.shape[0]
    if not graph.nnz:
        return (np.arange(nodes) * count // nodes).astype(np.int32)
    degrees = np.asarray(graph.sum(axis=1))
    scale = np.divide(1.0, np.sqrt(degrees), out=np.zeros(nodes), where=degrees > 0)
    normalized = sparse.csr_array(graph * scale[:, None] * scale[None, :])
    vectors = _leading_eigenvectors(normalized, count)[1]
    vectors[degrees == 0] = 0
    rows = _rows_of_length_one(vectors)
    centres, nearest = k_means(torch.from_numpy(rows), count, seed)
    preferred = nearest.numpy().astype(np.int32)[:, None]
    return codes_with_room(rows, centres.numpy()[None], preferred, np.arange(nodes), 0, room)


def _leading_eigenvectors(matrix: sparse.csr_array, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the (count,) largest eigenvalues of a symmetric matrix of n > count rows, and their (n, count) vectors."""
    nodes = matrix.shape[0]
    if nodes <= DENSE_UP_TO:
        values, vectors = eigh(matrix.toarray(), subset_by_index=[nodes - count, nodes - 1])
    else:
        values, vectors = eigsh(matrix, k=count, which="LA", v0=np.ones(nodes))  # a fixed start: the same on each run
    return values, vectors


def _rows_of_length_one(rows: np.ndarray) -> np.ndarray:
    """Divide rows by their length; rows shorter than 1e-9 become zeros."""
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.divide(rows, lengths, out=np.zeros_like(rows), where=lengths > 1e-9)
