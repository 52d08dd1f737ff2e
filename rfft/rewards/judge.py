"""The judge: a second network's opinion; never trained against and never chosen by, only reported.

It shares no weight and no training scene with RFNet: it is another architecture, began from another seed,
learned from scenes of another seed, and sees no depth or saliency. But both learned from AdWorld, and so
they share its renderer, product icons and panoramas, the rules by which a scene gets its label, and the VAE
and denoiser that made the degraded variants of their scenes. The embedded weights also share the plain
styles, the tokenizer of the captions, and the auxiliary loss (reading a scene's attributes); a judge that is
trained anew has styles, products, a tokenizer and a second task (sizes as numbers) that are not RFNet's
(rfft/adworld/styles.py, training/pretrain/judge.py). What RFNet misjudges for one of these reasons, the judge
may misjudge too: it stands for people only as far as AdWorld's labels do.
"""

from dataclasses import dataclass, field
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rfft.models.layers import fuse_early, vgg_stage
from rfft.models.pretrained import PretrainedModule


@dataclass
class JudgeConfig:
    """The shape of a judge; the values of its config.json."""

    vocab_size: int = 4096
    image_size: int = 64
    widths: list[int] = field(default_factory=lambda: [32, 64, 128, 192])
    text_width: int = 64
    dropout: float = 0.2
    num_labels: int = 5


class CaptionCNN(nn.Module):
    """Reads a caption as a bag of 5-grams (TextCNN, arXiv 1408.5882).

    A bag of tokens would read 180 cm and 108 cm alike.
    """

    def __init__(self, vocab_size: int, width: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocab_size, width)
        self.conv = nn.Conv1d(width, width, 5, padding=2)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Return features [B,width] of captions, ids and mask [B,L]."""
        words = self.embed(ids) * mask[..., None]
        ngrams = F.relu(self.conv(words.transpose(1, 2)))
        return (ngrams * mask[:, None]).amax(dim=2)


class Judge(PretrainedModule):
    """A VGG on early-fused image and product; the caption modulates its last stage (FiLM, 1709.07871)."""

    config_class = JudgeConfig

    def __init__(self, config: JudgeConfig) -> None:
        super().__init__(config)
        widths = config.widths
        self.stages = nn.ModuleList(vgg_stage(a, b) for a, b in pairwise([7, *widths]))
        self.caption = CaptionCNN(config.vocab_size, config.text_width)
        self.film = nn.Linear(config.text_width, 2 * widths[-2])
        self.head = nn.Sequential(
            nn.Dropout(config.dropout),
            nn.Linear(2 * widths[-1], widths[-1]),
            nn.ReLU(),
            nn.Linear(widths[-1], config.num_labels),
        )

    def forward(self, image: Tensor, product: Tensor, caption_ids: Tensor, caption_mask: Tensor) -> Tensor:
        """Return logits [B,5] of images [B,3,H,W], RGBA products [B,4,H,W] in [0,1], and captions [B,L]."""
        return self.head(pool(self.feature_map(image, product, caption_ids, caption_mask)))

    def feature_map(
        self, image: Tensor, product: Tensor, caption_ids: Tensor, caption_mask: Tensor
    ) -> Tensor:
        """Return the last stage's features [B,C,h,w]; arguments as in forward."""
        x = fuse_early(image, product, self.config.image_size).to(self.dtype)
        for i, stage in enumerate(self.stages[:-1]):
            x = stage(x if i == 0 else F.max_pool2d(x, 2))
        scale, shift = self.film(self.caption(caption_ids, caption_mask))[..., None, None].chunk(2, dim=1)
        return self.stages[-1](F.max_pool2d(x * (1 + scale) + shift, 2))


def pool(x: Tensor) -> Tensor:
    """Return what the judge's head classifies: mean and maximum [B,2C] of features [B,C,h,w]."""
    return torch.cat([x.mean(dim=(2, 3)), x.amax(dim=(2, 3))], dim=1)
