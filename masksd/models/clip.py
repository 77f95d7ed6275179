"""CLIP's towers, those of ``transformers`` run in stages, as the encoder of our models."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from transformers import CLIPModel, CLIPTextConfig, CLIPTextModel, CLIPVisionConfig, CLIPVisionModel

from masksd.models.base import load_weights
from masksd.models.clip_text import at_position, checkpoint_layers, sentence_parts, text_states
from masksd.models.registry import hub_source
from masksd.segmenter import ImageFeatures, TextFeatures


class ClipEncoder(nn.Module):
    """CLIP's image and text towers with one vector for every patch and every word.

    Patches go through the projection of the class token and words through that of the end token,
    so ``text.pooled @ image.local`` and ``image.pooled @ text.local`` are meaningful: they are the
    relevance scores ``p_i`` and ``q_i`` of the CM-MaskSD paper, Eq. 2 and 3.

    The patch embedding and the token embedding are called exactly once a pass, as modules: a
    forward hook on :attr:`image_embedding` or :attr:`text_embedding` can replace patches or words
    before positions are added.
    """

    image_embedding = "vision.embeddings.patch_embedding"
    text_embedding = "text.embeddings.token_embedding"
    image_layers = "vision.encoder.layers"
    image_prefix = 1  # the class token

    def __init__(
        self,
        vision: CLIPVisionConfig,
        text: CLIPTextConfig,
        *,
        projection: int,
        end_token: int,
        levels: int = 3,
    ) -> None:
        super().__init__()
        layers = vision.num_hidden_layers
        if not 1 <= levels <= layers:
            raise ValueError(f"levels must be in 1...{layers} (vision layers), got {levels}")
        self.end_token = end_token
        self.map_layers = tuple(layers * (level + 1) // levels for level in range(levels))
        self.vision = CLIPVisionModel(vision)
        self.text = CLIPTextModel(text)
        self.visual_projection = nn.Linear(vision.hidden_size, projection, bias=False)
        self.text_projection = nn.Linear(text.hidden_size, projection, bias=False)
        nn.init.normal_(self.visual_projection.weight, std=vision.hidden_size**-0.5)
        nn.init.normal_(self.text_projection.weight, std=text.hidden_size**-0.5)

    def encode_image(self, images: Tensor) -> ImageFeatures:
        """Encode ``images (B, 3, H, W)``, floating and normalised: ``V_local, v_global`` of Eq. 1.

        ``maps`` are hidden states ``(B, C, h, w)``, one a level, and last ``local`` as a map, so
        that a loss on the neck reaches the shared space.
        """
        patch = self.vision.config.patch_size
        height, width = check_images(images, patch, f"the patch size {patch}")
        grid = (height // patch, width // patch)
        hidden = self.vision.embeddings(images, interpolate_pos_encoding=True)  # (B, 1 + N, C)
        return self._finish_image(self.vision.pre_layrnorm(hidden), grid, 0, ())

    def resume_image(self, hidden: Tensor, layer: int, plain: ImageFeatures) -> ImageFeatures:
        """Go on from what layer number ``layer`` (from 1) returned, with maps of those below."""
        below = plain.maps[: sum(number < layer for number in self.map_layers[:-1])]
        return self._finish_image(hidden, plain.grid, layer, below)

    def _finish_image(
        self, hidden: Tensor, grid: tuple[int, int], layer: int, below: tuple[Tensor, ...]
    ) -> ImageFeatures:
        """Run the layers above number ``layer`` and project; ``below`` holds the earlier maps."""
        maps = list(below)
        layers = self.vision.encoder.layers
        for number in range(layer, len(layers) + 1):
            if number > layer:
                hidden = layers[number - 1](hidden, None)
            if number in self.map_layers[:-1]:
                maps.append(as_map(hidden[:, 1:], grid))  # (B, C, h, w)
        shared = self.visual_projection(self.vision.post_layernorm(hidden))  # (B, 1 + N, P)
        local = shared[:, 1:]
        return ImageFeatures(local, grid, shared[:, 0], (*maps, as_map(local, grid)))

    def real_words(self, tokens: Tensor) -> Tensor:
        """Mark the real words of ``tokens (B, L)``, bool ``(B, L)``."""
        return sentence_parts(tokens, self.end_token)[0]

    def encode_text(self, tokens: Tensor) -> TextFeatures:
        """Encode ``tokens (B, L)`` int64: ``W_local, w_global`` of Eq. 1.

        Position 0 is the start token and the first ``end_token`` ends the sentence. What follows is
        padding of any value; attention is causal, so it changes nothing before it. Ids are not
        checked, which would stop the device at every step: a row without an end token counts as
        words to its end and is pooled at position 0.
        """
        local = self.text_projection(text_states(self.text, tokens))  # (B, L, P)
        valid, attention_mask, end = sentence_parts(tokens, self.end_token)
        return TextFeatures(local, at_position(local, end), valid, attention_mask)

    def gradient_checkpointing_enable(self, **kwargs: bool) -> None:
        """Recompute the layers of both towers in backward, and no embedding, which has hooks."""
        for tower in (self.vision, self.text):
            checkpoint_layers(tower, **kwargs)

    def load_clip(self, source: str | Path) -> None:
        """Take the weights of a CLIP of ``transformers``: a folder, or ``"name@revision"``.

        Patch positions are resized (bicubic) to this encoder's ``image_size``; word positions are
        cut to its ``max_length``. Where the weights do not fit, nothing has changed.
        """
        name, revision = hub_source(source)
        try:
            clip = CLIPModel.from_pretrained(name, revision=revision)
        except OSError as error:
            raise ValueError(
                f"weights {name!r} are not in the cache and could not be downloaded; run `hf "
                f"download {name} --revision {revision}` on a machine with a network, and copy its "
                "cache folder (HF_HOME) to this one"
            ) from error
        for ours, theirs in ((self.vision, clip.vision_model), (self.text, clip.text_model)):
            for name in ("num_attention_heads", "hidden_act", "layer_norm_eps"):
                wanted, got = getattr(ours.config, name), getattr(theirs.config, name)
                if wanted != got:
                    raise ValueError(
                        f"weights {str(source)!r} have {name}={got!r} where this encoder has "
                        f"{wanted!r}; build it with the sizes of the weights"
                    )
        state = {
            **{f"vision.{key}": value for key, value in clip.vision_model.state_dict().items()},
            **{f"text.{key}": value for key, value in clip.text_model.state_dict().items()},
            "visual_projection.weight": clip.visual_projection.weight.detach(),
            "text_projection.weight": clip.text_projection.weight.detach(),
        }
        table = "vision.embeddings.position_embedding.weight"
        side = self.vision.config.image_size // self.vision.config.patch_size
        state[table] = resize_positions(state[table], side)
        table = "text.embeddings.position_embedding.weight"
        state[table] = state[table][: self.text.config.max_position_embeddings]
        load_weights(self, state, str(source))


def check_images(images: Tensor, unit: int, name: str) -> tuple[int, int]:
    """Return height and width of images whose sides are multiples of ``unit``, called ``name``."""
    if images.ndim != 4 or images.shape[1] != 3 or not images.is_floating_point():
        raise ValueError(
            "images must be floating and (B, 3, H, W), normalised; got "
            f"{images.dtype} {tuple(images.shape)}"
        )
    height, width = images.shape[2:]
    if height % unit or width % unit or not height or not width:
        near = [max(unit, round(side / unit) * unit) for side in (height, width)]
        raise ValueError(
            f"the image size {height}x{width} must be a multiple of {name}; resize or pad the "
            f"images to {near[0]}x{near[1]}, for example"
        )
    return height, width


def as_map(patches: Tensor, grid: tuple[int, int]) -> Tensor:
    """Lay patches out on their grid: ``(B, h * w, C)`` to ``(B, C, h, w)``."""
    return rearrange(patches, "b (h w) c -> b c h w", h=grid[0], w=grid[1])


def resize_positions(table: Tensor, side: int) -> Tensor:
    """Resize square patch positions ``(1 + n * n, C)``, class token first, to another side."""
    old = round((len(table) - 1) ** 0.5)
    if old == side:
        return table
    patches = table[1:].T.unflatten(1, (old, old))[None]  # (1, C, n, n)
    patches = F.interpolate(patches, size=(side, side), mode="bicubic", align_corners=False)
    return torch.cat([table[:1], patches[0].flatten(1).T])
