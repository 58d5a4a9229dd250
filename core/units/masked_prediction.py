"""What HuBERT's pretraining asks of its model, a batch at a time: the loss of training and the counts of validation."""

from typing import Any

import torch
from torch import nn

from core.losses.masked_prediction import MaskedPredictionConfig, frame_accuracies, frames_to_predict, prediction_loss
from core.losses.output import LossOutput, Metrics


def loss_fn(model: nn.Module, batch: Any, *, config: MaskedPredictionConfig) -> LossOutput:
    """Return the cross-entropy of the masked frames' clusters, summed over them, and the penalty on the features."""
    labels, masked = batch.labels, batch.masked_frames
    output = model(
        batch.audio,
        batch.num_samples,
        masked_frames=masked,
        predicted_frames=frames_to_predict(labels, masked, config),
        dropped_layers=batch.dropped_layers,
    )
    return prediction_loss(output.logits, labels, batch.num_frames, masked, output.penalties, config=config)


def score(model: nn.Module, batch: Any, *, most_frequent: int, config: MaskedPredictionConfig) -> Metrics:
    """Return the counts of loss and accuracies, `valid_*`.

    `valid_unigram_accuracy` is that of a model that hears nothing and guesses `most_frequent`, of the same masked
    frames.
    """
    every = torch.arange(batch.labels.size(1), device=batch.labels.device).expand_as(batch.labels)
    output = model(batch.audio, batch.num_samples, masked_frames=batch.masked_frames, predicted_frames=every)
    if not batch.num_targets:  # the empty batch of a rank that has no more clips
        return {}
    is_unigram = batch.targets == most_frequent
    labels, num_frames, masked = batch.labels, batch.num_frames, batch.masked_frames
    places = frames_to_predict(labels, masked, config)[..., None].expand(-1, -1, output.logits.size(-1))
    loss = prediction_loss(output.logits.gather(1, places), labels, num_frames, masked, output.penalties, config=config)
    found = {
        **frame_accuracies(output.logits, labels, num_frames, masked),
        "unigram_accuracy": (is_unigram.sum(), float(is_unigram.numel())),
        "loss": (loss.loss_sum, float(batch.num_targets)),
    }
    return {f"valid_{name}": counted for name, counted in found.items()}
