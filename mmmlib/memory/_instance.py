"""A memory of the images."""

import math

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mmmlib._check import check_devices, check_labels, check_number, check_numbered
from mmmlib.distributed import Group
from mmmlib.memory._banks import Memory, cosine_logits, unit_bank
from mmmlib.memory._update import Batch, Rule, check_batch, write

__all__ = ["InstanceMemory"]


class InstanceMemory(Memory):
    r"""One memory per image: logits per image, or per cluster; neighbours; momentum updates.

    With labels, the logit of cluster :math:`c` is the mean over its images, which is one product
    with the mean of their memories:

    .. math:: z_c = \frac{1}{|c|} \sum_{i \in c} \frac{\cos(x, m_i)}{\tau}.

    A number that no image has gets minus infinity. Call ``update`` after ``backward``.

    Args:
        features: One row per image, of any norm; cloned and normalised.
        labels: Cluster of each image; -1 belongs to none. Without them logits are per image.
        momentum: Weight of the old memory in an update.
        temperature: Divisor of the logits.
        rule: See ``update_memory``: what to do with an image that a batch holds more than once.

    Raises:
        TypeError: If an input is not a tensor.
        ValueError: If an argument is out of range or not finite.

    Example:
        >>> memory = InstanceMemory(torch.eye(3), labels=torch.tensor([0, 0, 1]), temperature=0.5)
        >>> row = torch.tensor([[0.8, 0.0, 0.6]])
        >>> memory(row)
        tensor([[0.8000, 1.2000]])
        >>> memory.instance_logits(row)
        tensor([[1.6000, 0.0000, 1.2000]])
        >>> memory.neighbors(row, ratio=0.7)
        tensor([[ True, False,  True]])
        >>> memory.update(row, torch.tensor([1]))
        >>> memory.features[1]
        tensor([0.7761, 0.2425, 0.5821])

    References:
        Ge et al. Self-paced Contrastive Learning with Hybrid Memory for Domain Adaptive Object
        Re-ID. NeurIPS 2020.
        Yang et al. Shallow-Deep Collaborative Learning for Unsupervised Visible-Infrared Person
        Re-Identification. CVPR 2024 (``neighbors``).
    """

    features: Tensor
    labels: Tensor
    sizes: Tensor

    def __init__(
        self,
        features: Float[Tensor, "instances dim"],
        *,
        labels: Int[Tensor, "instances"] | None = None,
        momentum: float = 0.2,
        temperature: float = 0.05,
        rule: Rule = "mean",
    ) -> None:
        super().__init__(momentum, temperature, rule, None)
        bank = unit_bank(features=features)
        self.register_buffer("features", bank)
        for name in ("labels", "sizes"):
            self.register_buffer(name, torch.empty(0, dtype=torch.int64, device=bank.device))
        self.set_labels(labels)

    def set_labels(self, labels: Int[Tensor, "instances"] | None) -> None:
        """Give every image a cluster (-1: none), once an epoch; None for logits per image.

        Args:
            labels: Cluster of each image.

        Raises:
            TypeError: If ``labels`` is not a tensor.
            ValueError: If there is not one label for each image.
        """
        if labels is None:
            self.labels, self.sizes = self.labels[:0], self.sizes[:0]
            return
        check_labels(len(self.features), labels=labels)
        check_devices(features=self.features, labels=labels)
        check_numbered(labels=labels)
        self.labels, self.sizes = labels.clone(), torch.bincount(labels[labels >= 0])

    def reset(
        self,
        features: Float[Tensor, "instances dim"],
        labels: Int[Tensor, "instances"] | None = None,
    ) -> None:
        """Start again from other images, of any number; cloned and normalised.

        Args:
            features: One row per image, of any norm.
            labels: Cluster of each image, -1 for none; None for logits per image.

        Raises:
            TypeError: If an input is not a tensor.
            ValueError: If the features are not finite, or the labels are not one for each image.
        """
        bank = unit_bank(features=features).to(self.features.device)
        if labels is not None:
            check_labels(len(bank), labels=labels)
            check_devices(features=bank, labels=labels)
            check_numbered(labels=labels)
        self.features = bank
        self.set_labels(labels)

    def forward(self, features: Float[Tensor, "n dim"]) -> Float[Tensor, "n outputs"]:
        """Logits per cluster if labels are set, else per image; in at least float32.

        Args:
            features: Rows of any norm.

        Returns:
            One logit per row and output; minus infinity for a cluster without images.

        Raises:
            TypeError: If ``features`` is not a tensor.
            ValueError: If it is no matrix of the memory's width.
        """
        if not len(self.labels):
            return self.instance_logits(features)
        n_clusters = len(self.sizes)
        label = torch.where(self.labels >= 0, self.labels, n_clusters)
        wide = self.features.dtype == torch.float64
        bank = self.features if wide else self.features.float()
        sums = bank.new_zeros(n_clusters + 1, bank.shape[1]).index_add(0, label, bank)
        logits = cosine_logits(
            features, sums[:-1] / self.sizes.clamp(min=1)[:, None], self.temperature
        )
        return logits.masked_fill(self.sizes == 0, -math.inf)

    def instance_logits(self, features: Float[Tensor, "n dim"]) -> Float[Tensor, "n instances"]:
        """Cosine similarity to every image's memory over the temperature.

        Args:
            features: Rows of any norm.

        Returns:
            One logit per row and image.

        Raises:
            TypeError: If ``features`` is not a tensor.
            ValueError: If it is no matrix of the memory's width.
        """
        return cosine_logits(features, self.features, self.temperature)

    @torch.no_grad()
    def neighbors(
        self, features: Float[Tensor, "n dim"], *, ratio: float = 0.9
    ) -> Bool[Tensor, "n instances"]:
        """Find the images whose similarity exceeds ``ratio`` times the largest of the row.

        The mask is what ``neighbor_loss`` takes; ``&`` joins those of two memories. A row whose
        largest similarity is not above 0 has no neighbour.

        Args:
            features: Rows of any norm.
            ratio: In [0, 1]; at 1 nothing exceeds it.

        Returns:
            Whether each image is a neighbour of each row.

        Raises:
            ValueError: If ``ratio`` is out of range, or ``features`` of another width.
        """
        check_number("ratio", ratio, 0, 1)
        similarity = cosine_logits(features, self.features, 1.0)
        if not similarity.numel():
            return similarity.bool()
        return similarity > ratio * similarity.amax(dim=1, keepdim=True)

    def update(  # type: ignore[override]
        self,
        features: Float[Tensor, "n dim"],
        indices: Int[Tensor, "n"],
        *,
        weights: Float[Tensor, "n"] | None = None,
        group: Group = None,
    ) -> None:
        """Write a batch into the memories of its images, in place; call it after ``backward``.

        Args:
            features: As for ``update_memory``.
            indices: The image of each row; -1 is left out.
            weights: Trust in each row.
            group: The processes whose batches are written, as for ``ClusterMemory.update``.

        Raises:
            TypeError: If an input is not a tensor.
            ValueError: If an argument is out of range or of another shape.
        """
        super().update(features, indices, weights=weights, group=group)

    def _write(self, batch: Batch) -> None:
        check_batch(self.features, batch, self.rule, name="indices")
        write(self.features, batch, self._step)
