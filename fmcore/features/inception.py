"""The Inception network of 2015 as in TensorFlow: pooled features, logits, spatial features.

Names and shapes are those of pt_inception-2015-12-05-6726825d.pth (M. Seitzer's port). It differs
from torchvision's in three ways: average pools leave out the padding, the last block has a maximum
pool, and images are resized as TensorFlow 1 did.
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, linear, max_pool2d


class Conv(nn.Module):
    """Convolution without bias, batch norm, ReLU."""

    def __init__(
        self, before: int, after: int, size: int | tuple[int, int], stride: int = 1
    ) -> None:
        super().__init__()
        high, wide = (size, size) if isinstance(size, int) else size
        self.conv = nn.Conv2d(before, after, (high, wide), stride, bias=False)
        self.bn = nn.BatchNorm2d(after, eps=0.001)

    def forward(self, x: Tensor) -> Tensor:
        """Return [B, after, H', W']."""
        out: Tensor = self.bn(self.conv(x)).relu()
        return out


def same(before: int, after: int, size: int | tuple[int, int]) -> Conv:
    """Return a Conv that keeps height and width."""
    made = Conv(before, after, size)
    made.conv.padding = tuple(k // 2 for k in made.conv.kernel_size)
    return made


def _mean(x: Tensor) -> Tensor:
    return avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)


class A(nn.Module):
    """Mixed_5b to 5d: 1x1, 5x5, double 3x3, pool."""

    def __init__(self, before: int, pool: int) -> None:
        super().__init__()
        self.branch1x1 = same(before, 64, 1)
        self.branch5x5_1, self.branch5x5_2 = same(before, 48, 1), same(48, 64, 5)
        self.branch3x3dbl_1, self.branch3x3dbl_2 = same(before, 64, 1), same(64, 96, 3)
        self.branch3x3dbl_3 = same(96, 96, 3)
        self.branch_pool = same(before, pool, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return the branches, concatenated along the channels."""
        five = self.branch5x5_2(self.branch5x5_1(x))
        three = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        return torch.cat([self.branch1x1(x), five, three, self.branch_pool(_mean(x))], 1)


class B(nn.Module):
    """Mixed_6a: halves height and width."""

    def __init__(self, before: int) -> None:
        super().__init__()
        self.branch3x3 = Conv(before, 384, 3, 2)
        self.branch3x3dbl_1, self.branch3x3dbl_2 = same(before, 64, 1), same(64, 96, 3)
        self.branch3x3dbl_3 = Conv(96, 96, 3, 2)

    def forward(self, x: Tensor) -> Tensor:
        """Return the branches, concatenated along the channels."""
        three = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        return torch.cat([self.branch3x3(x), three, max_pool2d(x, 3, 2)], 1)


class C(nn.Module):
    """Mixed_6b to 6e: 1x1, 7x7 and double 7x7 in two directions, pool."""

    def __init__(self, before: int, width: int) -> None:
        super().__init__()
        w, row, column = width, (1, 7), (7, 1)
        self.branch1x1 = same(before, 192, 1)
        self.branch7x7_1, self.branch7x7_2 = same(before, w, 1), same(w, w, row)
        self.branch7x7_3 = same(w, 192, column)
        self.branch7x7dbl_1, self.branch7x7dbl_2 = same(before, w, 1), same(w, w, column)
        self.branch7x7dbl_3, self.branch7x7dbl_4 = same(w, w, row), same(w, w, column)
        self.branch7x7dbl_5 = same(w, 192, row)
        self.branch_pool = same(before, 192, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return the branches, concatenated along the channels."""
        seven = self.branch7x7_3(self.branch7x7_2(self.branch7x7_1(x)))
        twice = self.branch7x7dbl_3(self.branch7x7dbl_2(self.branch7x7dbl_1(x)))
        twice = self.branch7x7dbl_5(self.branch7x7dbl_4(twice))
        return torch.cat([self.branch1x1(x), seven, twice, self.branch_pool(_mean(x))], 1)


class D(nn.Module):
    """Mixed_7a: halves height and width."""

    def __init__(self, before: int) -> None:
        super().__init__()
        self.branch3x3_1, self.branch3x3_2 = same(before, 192, 1), Conv(192, 320, 3, 2)
        self.branch7x7x3_1, self.branch7x7x3_2 = same(before, 192, 1), same(192, 192, (1, 7))
        self.branch7x7x3_3, self.branch7x7x3_4 = same(192, 192, (7, 1)), Conv(192, 192, 3, 2)

    def forward(self, x: Tensor) -> Tensor:
        """Return the branches, concatenated along the channels."""
        seven = self.branch7x7x3_3(self.branch7x7x3_2(self.branch7x7x3_1(x)))
        three = self.branch3x3_2(self.branch3x3_1(x))
        return torch.cat([three, self.branch7x7x3_4(seven), max_pool2d(x, 3, 2)], 1)


class E(nn.Module):
    """Mixed_7b and 7c: 1x1, 3x3 and double 3x3 split in two directions, pool."""

    def __init__(self, before: int, *, largest: bool) -> None:
        super().__init__()
        self.largest = largest
        self.branch1x1 = same(before, 320, 1)
        self.branch3x3_1 = same(before, 384, 1)
        self.branch3x3_2a, self.branch3x3_2b = same(384, 384, (1, 3)), same(384, 384, (3, 1))
        self.branch3x3dbl_1, self.branch3x3dbl_2 = same(before, 448, 1), same(448, 384, 3)
        self.branch3x3dbl_3a, self.branch3x3dbl_3b = same(384, 384, (1, 3)), same(384, 384, (3, 1))
        self.branch_pool = same(before, 192, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return the branches, concatenated along the channels."""
        three = self.branch3x3_1(x)
        twice = self.branch3x3dbl_2(self.branch3x3dbl_1(x))
        pool = max_pool2d(x, 3, stride=1, padding=1) if self.largest else _mean(x)
        parts = [self.branch1x1(x), self.branch3x3_2a(three), self.branch3x3_2b(three)]
        parts += [self.branch3x3dbl_3a(twice), self.branch3x3dbl_3b(twice)]
        return torch.cat([*parts, self.branch_pool(pool)], 1)


class Inception(nn.Module):
    """Images [B, 3, 299, 299], levels scaled to [-1, 1], to features [B, 2048]."""

    def __init__(self) -> None:
        super().__init__()
        self.Conv2d_1a_3x3, self.Conv2d_2a_3x3 = Conv(3, 32, 3, 2), Conv(32, 32, 3)
        self.Conv2d_2b_3x3 = same(32, 64, 3)
        self.Conv2d_3b_1x1, self.Conv2d_4a_3x3 = Conv(64, 80, 1), Conv(80, 192, 3)
        self.Mixed_5b, self.Mixed_5c, self.Mixed_5d = A(192, 32), A(256, 64), A(288, 64)
        self.Mixed_6a, self.Mixed_6b, self.Mixed_6c = B(288), C(768, 128), C(768, 160)
        self.Mixed_6d, self.Mixed_6e, self.Mixed_7a = C(768, 160), C(768, 192), D(768)
        self.Mixed_7b, self.Mixed_7c = E(1280, largest=False), E(2048, largest=True)
        self.fc = nn.Linear(2048, 1008)

    def forward(self, x: Tensor) -> Tensor:
        """Return the features [B, 2048]."""
        return self.outputs(x)[0]

    def outputs(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the pooled features [B, 2048], the logits [B, 1008] and the spatial [B, 2023].

        Logits are without the bias, as in TensorFlow's Inception Score. Spatial features are the
        first 7 channels of `mixed_6/conv`, 17 x 17 each, channels last (Nash et al. 2021, in the
        order of ADM's evaluator).
        """
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x)))
        x = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(max_pool2d(x, 3, 2)))
        x = self.Mixed_5d(self.Mixed_5c(self.Mixed_5b(max_pool2d(x, 3, 2))))
        x = self.Mixed_6c(self.Mixed_6b(self.Mixed_6a(x)))
        spatial = self.Mixed_6d.branch1x1(x)[:, :7].permute(0, 2, 3, 1).flatten(1)
        x = self.Mixed_7c(self.Mixed_7b(self.Mixed_7a(self.Mixed_6e(self.Mixed_6d(x)))))
        pooled = x.mean((2, 3))
        return pooled, linear(pooled, self.fc.weight), spatial


def tf1_resize(x: Tensor, size: int) -> Tensor:
    """Resize [B, C, H, W] to [B, C, size, size] bilinearly, pixel i taken at i * H / size."""
    for dim in (2, 3):
        have = x.shape[dim]
        at = torch.arange(size, dtype=torch.float32, device=x.device) * (have / size)
        low = at.long().clamp(max=have - 1)
        high = (low + 1).clamp(max=have - 1)
        share = (at - low).reshape(-1, *(1,) * (3 - dim))
        x = x.index_select(dim, low) * (1 - share) + x.index_select(dim, high) * share
    return x
