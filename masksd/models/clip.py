"""The two CLIP towers as the encoder of a referring segmentation model.

The transformers are those of the ``transformers`` library, used as they are; this module only runs
them in stages, so that the hidden states of several layers come out and every patch and every word
is projected into the space that pictures and sentences share.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from transformers import CLIPModel, CLIPTextConfig, CLIPTextModel, CLIPVisionConfig, CLIPVisionModel

from masksd.models.clip_text import checkpoint_layers, sentence_parts, text_states
from masksd.segmenter import ImageFeatures, TextFeatures


class ClipEncoder(nn.Module):
    """CLIP's image and text towers with one vector for every patch and every word.

    Patches go through the projection of the class token and words through that of the end token,
    so ``text.pooled @ image.local`` and ``image.pooled @ text.local`` are meaningful (they are the
    relevance scores ``p_i`` and ``q_i`` of the CM-MaskSD paper, Eq. 2 and 3).

    The patch embedding and the token embedding are called exactly once a pass, as modules: a
    forward hook on :attr:`image_embedding` or :attr:`text_embedding` can replace patches or words
    before positions are added.

    Args:
        vision: sizes of the image tower; ``image_size`` is the size that its table of positions
            is stored at, other sizes are interpolated.
        text: sizes of the text tower; ``eos_token_id`` is not used, see ``end_token``.
        projection: width P of the shared space.
        end_token: id that ends a sentence; the first one in a row counts.
        levels: how many maps go to the neck, from evenly spaced layers; the last one is the
            projected output.

    Raises:
        ValueError: ``levels`` is not in 1 ... number of vision layers.

    Example:
        >>> import torch
        >>> from transformers import CLIPTextConfig, CLIPVisionConfig
        >>> size = dict(hidden_size=16, num_hidden_layers=3, num_attention_heads=2)
        >>> size = dict(size, intermediate_size=32)
        >>> vision = CLIPVisionConfig(image_size=32, patch_size=8, **size)
        >>> text = CLIPTextConfig(vocab_size=10, max_position_embeddings=6, **size)
        >>> encoder = ClipEncoder(vision, text, projection=12, end_token=9)
        >>> image = encoder.encode_image(torch.zeros(2, 3, 32, 48))
        >>> tuple(image.local.shape), image.grid, len(image.maps)
        ((2, 24, 12), (4, 6), 3)
        >>> encoder.encode_text(torch.tensor([[8, 3, 4, 9, 0, 0]])).valid[0].tolist()
        [False, True, True, False, False, False]
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
        """Encode pictures: ``V_local, v_global`` of Eq. 1 and the maps for the neck.

        Args:
            images: ``(B, 3, H, W)``, floating, normalised by CLIP's mean and standard deviation;
                H and W are multiples of the patch size, square or not.

        Returns:
            ``local (B, N, P)`` projected patches in row-major order, ``grid (h, w)`` with
            ``h * w == N``, ``pooled (B, P)`` projected class token, ``maps``: one a level, shallow
            to deep: hidden states ``(B, C, h, w)``, C the width of the tower, and last ``local``
            as ``(B, P, h, w)``, so that a loss on the neck reaches the shared space.

        Raises:
            ValueError: not a floating ``(B, 3, H, W)``, or a size that the patches do not divide.
        """
        patch = self.vision.config.patch_size
        height, width = check_images(images, patch, f"the patch size {patch}")
        grid = (height // patch, width // patch)
        hidden = self.vision.embeddings(images, interpolate_pos_encoding=True)  # (B, 1 + N, C)
        return self._finish_image(self.vision.pre_layrnorm(hidden), grid, 0, ())

    def resume_image(self, hidden: Tensor, layer: int, plain: ImageFeatures) -> ImageFeatures:
        """Go on above a layer of the image tower, as :meth:`encode_image` does.

        Args:
            hidden: what the layer returned, or that with patches masked, ``(B, 1 + N, C)``.
            layer: its number, from 1.
            plain: what :meth:`encode_image` returned for these pictures; the maps of the layers
                below are taken from it.

        Returns:
            As :meth:`encode_image`.

        Example:
            >>> from masksd.models import create_model
            >>> encoder = create_model("clip_cris_tiny").encoder
            >>> plain = encoder.encode_image(torch.zeros(1, 3, 64, 64))
            >>> encoder.resume_image(torch.zeros(1, 65, 96), 2, plain).local.shape
            torch.Size([1, 64, 64])
        """
        below = plain.maps[: sum(number < layer for number in self.map_layers[:-1])]
        return self._finish_image(hidden, plain.grid, layer, below)

    def _finish_image(
        self, hidden: Tensor, grid: tuple[int, int], layer: int, below: tuple[Tensor, ...]
    ) -> ImageFeatures:
        """Run the layers above number ``layer`` and project; ``below`` are maps there are."""
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

    def encode_text(self, tokens: Tensor) -> TextFeatures:
        """Encode sentences: ``W_local, w_global`` of Eq. 1.

        Position 0 is the start token and the first ``end_token`` ends the sentence; what follows it
        is padding of any value and changes nothing before it (attention is causal).

        The values of the tokens are not checked here, which would stop the device at every step:
        that every row has an end token and that ids are inside the vocabulary is the tokenizer's
        part. A row without an end token counts as words to the end and is pooled at position 0.

        Args:
            tokens: ``(B, L)`` int64 ids, L at most the number of positions of the tower.

        Returns:
            ``local (B, L, P)`` projected words, ``pooled (B, P)`` that of the end token, ``valid``
            bool ``(B, L)`` real words only (strictly between start and end), ``attention_mask``
            bool ``(B, L)`` from the start token up to and including the end token.

        Raises:
            ValueError: not ``(B, L)`` int64, or longer than the tower has positions.
        """
        hidden = text_states(self.text, tokens)
        local = self.text_projection(hidden)  # (B, L, P)
        valid, attention_mask, end = sentence_parts(tokens, self.end_token)
        pooled = local.gather(1, end[:, None, None].expand(-1, 1, local.shape[2])).squeeze(1)
        return TextFeatures(local, pooled, valid, attention_mask)

    def gradient_checkpointing_enable(self, **kwargs: bool) -> None:
        """Recompute the layers of both towers in backward instead of keeping their activations.

        Embeddings, projections, neck and decoder are not recomputed, so hooks on the embeddings
        run once a pass all the same.

        Args:
            **kwargs: handed to ``torch.utils.checkpoint``; ``use_reentrant=False`` by default.
        """
        for tower in (self.vision, self.text):
            checkpoint_layers(tower, **kwargs)

    def load_clip(self, source: str | Path) -> None:
        """Take the weights of a CLIP model in the format of ``transformers``.

        The table of patch positions is resized (bicubic) to this encoder's ``image_size``; the
        table of word positions is cut to its ``max_length``.

        Args:
            source: name on the Hugging Face Hub, or a folder.

        Raises:
            ValueError: the weights cannot be had, or they are of another size than the encoder;
                nothing has been changed then.
        """
        try:
            clip = CLIPModel.from_pretrained(source)
        except OSError as error:
            raise ValueError(
                f"weights {str(source)!r} are not in the cache and could not be downloaded; get "
                f"them with `hf download {source}` where there is a network (and copy the cache "
                "folder, which HF_HOME names, to this machine)"
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
        own = self.state_dict()
        wrong = sorted(
            key
            for key in own.keys() | state.keys()
            if key not in own or key not in state or own[key].shape != state[key].shape
        )
        if wrong:
            raise ValueError(
                f"weights {str(source)!r} are of another size than this encoder; {len(wrong)} "
                f"tensors differ, the first is {wrong[0]!r}: keep the sizes of the towers"
            )
        self.load_state_dict(state)


def check_images(images: Tensor, unit: int, name: str) -> tuple[int, int]:
    """Return height and width of pictures that an encoder can take.

    Args:
        images: floating ``(B, 3, H, W)``.
        unit: both sides must be multiples of it, pixels.
        name: what the unit is, for the message.

    Raises:
        ValueError: another dtype, shape or size.

    Example:
        >>> check_images(torch.zeros(1, 3, 32, 64), 16, "the patch size 16")
        (32, 64)
    """
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
    """Lay patches out on their grid: ``(B, h * w, C)`` to ``(B, C, h, w)``.

    Example:
        >>> as_map(torch.arange(6).reshape(1, 6, 1), (2, 3)).tolist()
        [[[[0, 1, 2], [3, 4, 5]]]]
    """
    return rearrange(patches, "b (h w) c -> b c h w", h=grid[0], w=grid[1])


def resize_positions(table: Tensor, side: int) -> Tensor:
    """Resize a square table of patch positions, the class token's row first.

    Args:
        table: ``(1 + n * n, C)``.
        side: rows and columns wanted.

    Returns:
        ``(1 + side * side, C)``, bicubic; the table itself where it has that size.

    Example:
        >>> resize_positions(torch.ones(1 + 4, 3), 4).shape
        torch.Size([17, 3])
    """
    old = round((len(table) - 1) ** 0.5)
    if old == side:
        return table
    patches = table[1:].T.unflatten(1, (old, old))[None]  # (1, C, n, n)
    patches = F.interpolate(patches, size=(side, side), mode="bicubic", align_corners=False)
    return torch.cat([table[:1], patches[0].flatten(1).T])
