"""Layers of SEA-RAFT, under the names that the published weights have.

Written from the description of the architecture: Wang, Lipson, Deng, "SEA-RAFT: Simple, Efficient, Accurate
RAFT for Optical Flow", ECCV 2024, and the weights of github:princeton-vl/SEA-RAFT. Feature maps are `B C h w`
at 1/8 of the pixel grid; flow at that grid is in cells, (dx, dy).
"""

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

CELL = 8
"""Pixels along a side of one feature cell."""


def convolve_and_normalize(conv: nn.Conv2d, norm: nn.BatchNorm2d, x: Tensor) -> Tensor:
    """Apply a convolution, then batch norm.

    With running statistics, both are computed as one convolution, which saves half as much for backward.
    """
    if norm.training:
        return norm(conv(x))
    assert norm.running_var is not None and norm.running_mean is not None and conv.bias is not None
    scale = norm.weight * torch.rsqrt(norm.running_var + norm.eps)
    bias = (conv.bias - norm.running_mean) * scale + norm.bias
    return F.conv2d(x, conv.weight * scale[:, None, None, None], bias, conv.stride, conv.padding)


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions with a shortcut; a block with stride, or that changes the width, projects its
    input with a 1x1 convolution.
    """

    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1)
        self.bn1, self.bn2 = nn.BatchNorm2d(outputs), nn.BatchNorm2d(outputs)
        self.downsample = None
        if stride != 1 or inputs != outputs:
            self.bn3 = nn.BatchNorm2d(outputs)  # published files name this norm twice
            self.downsample = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride), self.bn3)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(convolve_and_normalize(self.conv1, self.bn1, x))
        y = F.relu(
            convolve_and_normalize(self.conv2, self.bn2, y)
        )  # also before the sum, unlike the usual residual net
        return F.relu(y + self._apply_shortcut(x))

    def _apply_shortcut(self, x: Tensor) -> Tensor:
        if self.downsample is None:
            return x
        projection = self.downsample[0]
        assert isinstance(projection, nn.Conv2d)
        return convolve_and_normalize(projection, self.bn3, x)


class FeatureEncoder(nn.Module):
    """Three ResNet stages and a 1x1 convolution: images `B inputs H W` to features `B outputs H/8 W/8`."""

    def __init__(
        self, inputs: int, outputs: int, stem: int, widths: tuple[int, ...], blocks: tuple[int, ...]
    ):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, stem, 7, stride=2, padding=3)
        self.bn1 = nn.BatchNorm2d(stem)
        before = (stem, *widths[:-1])
        self.layer1, self.layer2, self.layer3 = (
            _make_stage(before[i], widths[i], blocks[i], stride=1 if i == 0 else 2) for i in range(3)
        )
        self.final_conv = nn.Conv2d(widths[-1], outputs, 1)

    def forward(self, images: Tensor) -> Tensor:
        x = F.relu(convolve_and_normalize(self.conv1, self.bn1, images))
        return self.final_conv(self.layer3(self.layer2(self.layer1(x))))


def _make_stage(inputs: int, outputs: int, blocks: int, stride: int) -> nn.Sequential:
    first = ResidualBlock(inputs, outputs, stride)
    return nn.Sequential(first, *(ResidualBlock(outputs, outputs, 1) for _ in range(blocks - 1)))


class MotionEncoder(nn.Module):
    """Motion features `B dim h w` from the correlation around the current match and the current flow."""

    def __init__(self, correlations: int, dim: int):
        super().__init__()
        self.convc1 = nn.Conv2d(correlations, 2 * dim, 1)
        self.convc2 = nn.Conv2d(2 * dim, dim + dim // 2, 3, padding=1)
        self.convf1 = nn.Conv2d(2, dim, 7, padding=3)
        self.convf2 = nn.Conv2d(dim, dim // 2, 3, padding=1)
        self.conv = nn.Conv2d(2 * dim, dim - 2, 3, padding=1)

    def forward(self, flow: Tensor, correlation: Tensor) -> Tensor:
        c = F.relu(self.convc2(F.relu(self.convc1(correlation))))
        f = F.relu(self.convf2(F.relu(self.convf1(flow))))
        return torch.cat([F.relu(self.conv(torch.cat([c, f], 1))), flow], 1)


class ConvNextBlock(nn.Module):
    """ConvNeXt block on `B inputs h w`, then a 1x1 convolution to `outputs` channels."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.dwconv = nn.Conv2d(inputs, inputs, 7, padding=3, groups=inputs)
        self.norm = nn.LayerNorm(inputs, eps=1e-6)
        self.pwconv1 = nn.Linear(inputs, 4 * outputs)
        self.pwconv2 = nn.Linear(4 * outputs, inputs)
        self.gamma = nn.Parameter(torch.full((inputs,), 1e-6))
        self.final = nn.Conv2d(inputs, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(rearrange(self.dwconv(x), "b c h w -> b h w c"))
        y = self.gamma * self.pwconv2(F.gelu(self.pwconv1(y)))
        return self.final(x + rearrange(y, "b h w c -> b c h w"))


class UpdateBlock(nn.Module):
    """One refinement of the hidden state `B dim h w`."""

    def __init__(self, correlations: int, dim: int, refinements: int):
        super().__init__()
        self.encoder = MotionEncoder(correlations, dim)
        self.refine = nn.ModuleList(ConvNextBlock(3 * dim, dim) for _ in range(refinements))

    def forward(self, hidden: Tensor, context: Tensor, correlation: Tensor, flow: Tensor) -> Tensor:
        motion = self.encoder(flow, correlation)
        for block in self.refine:
            hidden = block(torch.cat([hidden, context, motion], 1))
        return hidden


class CorrelationPyramid:
    """Similarity of every cell of one feature map with every cell of another, at halving resolutions."""

    def __init__(self, features_a: Tensor, features_b: Tensor, levels: int, radius: int):
        self.radius = radius
        self.levels = []
        for level in range(levels):
            if level:
                features_b = F.interpolate(features_b, scale_factor=0.5, mode="bilinear", align_corners=False)
            self.levels.append(_compute_similarity(features_a, features_b))

    def look_up(self, coordinates: Tensor) -> Tensor:
        """Return the similarities `B levels*(2r+1)^2 h w` around `coordinates` (`B 2 h w`, x and y in
        cells).
        """
        batch, _, h, w = coordinates.shape
        centers = rearrange(coordinates, "b xy h w -> (b h w) 1 1 xy")
        windows = [
            _sample(volume, centers / 2**level + self._make_window(centers))
            for level, volume in enumerate(self.levels)
        ]
        return rearrange(torch.cat(windows, 1), "(b h w) c -> b c h w", b=batch, h=h, w=w)

    def _make_window(self, like: Tensor) -> Tensor:
        """Return the offsets `(2r+1) (2r+1) 2`. The FIRST index moves x, because the published weights are
        ordered that way.
        """
        steps = torch.arange(-self.radius, self.radius + 1, device=like.device, dtype=like.dtype)
        return torch.stack(torch.meshgrid(steps, steps, indexing="ij"), -1)


def _compute_similarity(a: Tensor, b: Tensor) -> Tensor:
    """Return dot products over sqrt(channels), `(B h w) 1 h' w'`."""
    products = torch.einsum("bcn,bcm->bnm", a.flatten(2), b.flatten(2)) / a.shape[1] ** 0.5
    return rearrange(products, "b n (h w) -> (b n) 1 h w", h=b.shape[2])


def _sample(volume: Tensor, coordinates: Tensor) -> Tensor:
    """Return bilinear values `N u*v` of `N 1 h w` at `N u v 2` (x and y in cells; 0 outside)."""
    last_cell = torch.tensor([volume.shape[3] - 1, volume.shape[2] - 1]).to(coordinates)
    grid = 2 * coordinates / last_cell - 1
    return F.grid_sample(volume, grid, align_corners=True).flatten(1)


def upsample_convex(flow: Tensor, logits: Tensor, gain: float) -> Tensor:
    """Upsample `B c h w` to `B c 8h 8w`, times gain: each pixel is a softmax-weighted sum of the 3x3 cells
    around it.
    """
    weights = rearrange(logits, "b (k v u) h w -> b 1 k v u h w", k=9, v=CELL, u=CELL).softmax(2)
    cells = F.unfold(gain * flow, 3, padding=1)
    cells = rearrange(cells, "b (c k) (h w) -> b c k 1 1 h w", k=9, h=flow.shape[2])
    return rearrange((weights * cells).sum(2), "b c v u h w -> b c (h v) (w u)")


def make_cell_grid(like: Tensor) -> Tensor:
    """Return the coordinates (x, y) of every cell, `1 2 h w`."""
    h, w = like.shape[-2:]
    y, x = torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")
    return torch.stack([x, y])[None].to(like)
