"""The peers' language models in PyTorch, in the sizes of small_lm.py if none are given.

Each function returns a module and a function from tokens [1, L] to the mean loss of
predicting every token but the first, in nats. All are in training mode, and without
dropout unless it is asked for.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import transformers
from torch import nn
from torch.nn import functional

from benchmarks import small_lm

Loss = Callable[[torch.Tensor], torch.Tensor]


def hugging_face(
    length: int,
    buckets: int | tuple[int, ...],
    layers: Sequence[str] = ('lsh',) * small_lm.LAYERS,
) -> tuple[nn.Module, Loss]:
    """The Reformer of transformers, with as many hash buckets as ours."""
    config = transformers.ReformerConfig(
        vocab_size=small_lm.VOCAB_SIZE,
        hidden_size=small_lm.D_MODEL,
        feed_forward_size=small_lm.D_FF,
        num_attention_heads=small_lm.HEADS,
        attention_head_size=small_lm.HEAD_SIZE,
        attn_layers=list(layers),
        lsh_attn_chunk_length=small_lm.CHUNK_LENGTH,
        local_attn_chunk_length=small_lm.CHUNK_LENGTH,
        num_buckets=buckets if isinstance(buckets, int) else list(buckets),
        num_hashes=small_lm.ROUNDS,
        axial_pos_shape=small_lm.axial_shape(length),
        axial_pos_embds_dim=small_lm.AXIAL_SIZES,
        max_position_embeddings=length,
        hidden_dropout_prob=0.0,
        lsh_attention_probs_dropout_prob=0.0,
        local_attention_probs_dropout_prob=0.0,
        is_decoder=True,
        use_cache=False,  # the default keeps every layer's activations in training too
    )
    model = transformers.ReformerModelWithLMHead(config).train()
    return model, lambda tokens: model(input_ids=tokens, labels=tokens).loss


def hugging_face_of(
    fields: Mapping[str, Any], precision: str
) -> tuple[nn.Module, Loss]:
    """The Reformer of transformers of a config.json, with the dropout that is there.

    Args:
      fields: of the config.json.
      precision: 'bfloat16' for parameters and all, or 'float32' with TF32 in products.
    """
    torch.set_float32_matmul_precision('high')
    config = transformers.ReformerConfig(**{**fields, 'use_cache': False})
    model = transformers.ReformerModelWithLMHead(config)
    model = model.to(getattr(torch, precision)).train()
    return model, lambda tokens: model(input_ids=tokens, labels=tokens).loss


def lucidrains(length: int, depth: int = small_lm.LAYERS) -> tuple[nn.Module, Loss]:
    """reformer-pytorch; its number of buckets is always L / bucket_size."""
    import reformer_pytorch

    model = reformer_pytorch.ReformerLM(
        num_tokens=small_lm.VOCAB_SIZE,
        dim=small_lm.D_MODEL,
        depth=depth,
        max_seq_len=length,
        heads=small_lm.HEADS,
        dim_head=small_lm.HEAD_SIZE,
        bucket_size=small_lm.CHUNK_LENGTH,
        n_hashes=small_lm.ROUNDS,
        ff_chunks=1,  # faster than its default of 100
        ff_mult=small_lm.D_FF // small_lm.D_MODEL,
        ff_activation=nn.ReLU,
        causal=True,
        axial_position_emb=True,
        axial_position_shape=small_lm.axial_shape(length),
    )
    return model.train(), _next_token_loss(model)


def exact(length: int) -> tuple[nn.Module, Loss]:
    """A pre-norm transformer on torch's own exact causal attention."""
    model = _Transformer(length).train()
    return model, _next_token_loss(model)


def training_step(
    model: nn.Module, loss: Loss, length: int, device: str = 'cpu'
) -> Callable[[], float]:
    """A function that runs one step on fixed random tokens and returns its loss."""
    model.to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(256, (1, length), generator=generator).to(device)

    def run_step() -> float:
        optimizer.zero_grad()
        value = loss(tokens)
        value.backward()
        optimizer.step()
        return value.item()

    return run_step


def _next_token_loss(model: nn.Module) -> Loss:
    def loss(tokens: torch.Tensor) -> torch.Tensor:
        logits = model(tokens)
        return functional.cross_entropy(
            logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten()
        )

    return loss


class _Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        width = small_lm.HEADS * small_lm.HEAD_SIZE
        self.attention_norm = nn.LayerNorm(small_lm.D_MODEL)
        self.query_key_value = nn.Linear(small_lm.D_MODEL, 3 * width, bias=False)
        self.output = nn.Linear(width, small_lm.D_MODEL, bias=False)
        self.feed_forward = nn.Sequential(
            nn.LayerNorm(small_lm.D_MODEL),
            nn.Linear(small_lm.D_MODEL, small_lm.D_FF),
            nn.ReLU(),
            nn.Linear(small_lm.D_FF, small_lm.D_MODEL),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        projected = self.query_key_value(self.attention_norm(x))
        split = projected.unflatten(-1, (3, small_lm.HEADS, small_lm.HEAD_SIZE))
        q, k, v = split.permute(2, 0, 3, 1, 4)
        out = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.output(out.transpose(1, 2).flatten(2))
        return x + self.feed_forward(x)


class _Transformer(nn.Module):
    def __init__(self, length: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(small_lm.VOCAB_SIZE, small_lm.D_MODEL)
        shape, sizes = small_lm.axial_shape(length), small_lm.AXIAL_SIZES
        self.rows = nn.Parameter(torch.randn(shape[0], 1, sizes[0]))
        self.columns = nn.Parameter(torch.randn(1, shape[1], sizes[1]))
        self.layers = nn.Sequential(*(_Layer() for _ in range(small_lm.LAYERS)))
        self.norm = nn.LayerNorm(small_lm.D_MODEL)
        self.output = nn.Linear(small_lm.D_MODEL, small_lm.VOCAB_SIZE)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        rows, columns = self.rows.shape[0], self.columns.shape[1]
        axes: list[Any] = [
            self.rows.expand(-1, columns, -1),
            self.columns.expand(rows, -1, -1),
        ]
        positions = torch.cat(axes, dim=-1).flatten(0, 1)
        return self.output(self.norm(self.layers(self.embedding(tokens) + positions)))
