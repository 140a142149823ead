# Copyright 2026 The flux-hf authors. Licensed under the Apache License, Version 2.0.
"""Video classification at a chosen token budget, over several views, batched across clips, decoding ahead."""

import os
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch
from transformers import PreTrainedModel, VideoClassificationPipeline

from .auto_budgets import AUTO, BudgetLadder, logits_at_auto_budgets
from .exported import ExportedClassifier
from .loading import following, is_plain, wrapped
from .protocol import logits_at_budgets, selects_by_threshold
from .token_selection import as_count
from .video_inputs import is_frame_list
from .video_processing_fluxvit import FluxViTVideoProcessor
from .video_streams import VideoDecodeError
from .video_windows import VideoWindow, iter_windows


DEFAULT_DECODE_THREADS = 2


class FluxViTVideoClassificationPipeline(VideoClassificationPipeline):
    """Classifies videos with a FluxViT model.

    ```python
    from transformers import pipeline
    from flux_hf import FluxViTVideoClassificationPipeline

    classify = pipeline("video-classification", model=path, pipeline_class=FluxViTVideoClassificationPipeline)
    classify("clip.mp4", token_budget=1024, top_k=3)  # [{"score": ..., "label": ...}, ...]
    classify(["a.mp4", "b.mp4"], num_clips=4, num_crops=3, batch_size=2)  # one such list a video
    classify("hours.mp4", window=2.0, stride=1.0)  # [{"start": 0.0, "end": 2.0, "labels": [...]}, ...]
    ```

    A plain VideoMAE, V-JEPA 2 or ViViT model is wrapped (`FluxForVideoClassification.from_backbone`), and its processor
    followed. An exported folder is classified with in the same way: `model=load_exported(folder)`.

    Scores are the mean over views of each view's softmax (sigmoid for multi-label models), as published. Clips are
    decoded by background threads while the model runs: `num_workers` of them, 2 by default.
    """

    def __init__(self, model: PreTrainedModel | ExportedClassifier, *args: Any, **kwargs: Any):
        if isinstance(model, ExportedClassifier):
            if kwargs.get("video_processor") is None:
                kwargs["video_processor"] = FluxViTVideoProcessor.from_pretrained(model.folder)
            if kwargs.get("device") is None:
                kwargs["device"] = model.device
        elif is_plain(model.config):
            own = kwargs.pop("video_processor", None) or kwargs.pop("image_processor", None)
            model = wrapped(model)
            kwargs["video_processor"] = following({} if own is None else own.to_dict(), model.config)
        super().__init__(model, *args, **kwargs)

    def check_model_type(self, supported_models: list[str] | dict) -> None:
        """As the library's, which knows no exported models: it would log an error."""
        if not isinstance(self.model, ExportedClassifier):
            super().check_model_type(supported_models)

    def _sanitize_parameters(
        self,
        top_k: int | None = None,
        num_frames: int | None = None,
        size: int | dict | None = None,
        num_clips: int | None = None,
        num_crops: int | None = None,
        token_budget: int | str | None = None,
        backend: str | None = None,
        function_to_apply: str | None = None,
    ) -> tuple[dict, dict, dict]:
        counts = {"num_frames": num_frames, "num_clips": num_clips, "num_crops": num_crops}
        preprocess = {name: as_count(name, value) for name, value in counts.items() if value is not None}
        preprocess.update({name: value for name, value in (("size", size), ("backend", backend)) if value is not None})
        if isinstance(token_budget, str) and token_budget == AUTO:
            if isinstance(self.model, ExportedClassifier):
                allowed = self.model.token_budgets
                raise ValueError(f"an exported model has a program for each budget, none for 'auto'; it has {allowed}")
            BudgetLadder.of(self.model.config)
        elif token_budget is not None:
            token_budget = as_count("token_budget", token_budget)
        forward = {} if token_budget is None else {"token_budget": token_budget}
        preprocess.update(forward)
        top_k = None if top_k is None else as_count("top_k", top_k)
        _, _, postprocess = super()._sanitize_parameters(top_k=top_k, function_to_apply=function_to_apply)
        if function_to_apply is None:  # transformers 5.17 says softmax, whatever the problem type
            postprocess.pop("function_to_apply", None)
        return preprocess, forward, postprocess

    def __call__(
        self, inputs: Any, window: float | None = None, stride: float | None = None, **kwargs: Any
    ) -> list[dict[str, Any]] | list[list[dict[str, Any]]]:
        """Labels one video or several.

        Args:
            inputs: A video: path, URL, bytes, file object, frames (T, H, W, 3) or (T, 3, H, W) as array or tensor, or a
                list of PIL images. Or a list (or generator, or array with a leading batch axis) of videos.
            window: Label each window of so many seconds of a video of any length, not the whole (`iter_windows`).
            stride: Seconds from a window to the next; `window` if not given.
            token_budget: Tokens encoded of each view; the model's default if not given. If neither `num_frames` nor
                `size` is, the clip is the one that the model's `token_plan` holds for exactly this budget, or the
                default one if it holds none. Without a `token_budget` the clip is always the default one. "auto"
                encodes each video, or window, at as few tokens as it needs, by the model's `auto_budgets`, whose clip
                it is: the views of a video decide together.
            num_frames: Frames sampled of each view; the model's default if not given.
            size: Short side and crop in pixels, or a size dict of the processor.
            num_clips: Temporal views of each video.
            num_crops: Spatial views of each temporal view.
            backend: Decoder of files, "pyav" or "decord"; the processor's if not given.
            top_k: Labels returned, at most the model's; 5 by default.
            function_to_apply: "softmax", "sigmoid" or "none"; by the model's problem type if not given.
            batch_size: Videos in a forward pass, each of num_clips * num_crops views; 1 by default. Successive ones of
                which equally many tokens are kept, whatever their shapes.
            num_workers: Decoding threads.

        Returns:
            `top_k` dicts of `label` and `score`, best first, of an automatic budget with the `token_budget` that it
            came to; a list of such lists for several videos. With `window` a
            dict of `start`, `end` (seconds) and `labels` for each window; `iter_windows` gives them as they come.

        Raises:
            ValueError: an argument out of range; `VideoDecodeError`, one of these, for a video that cannot be decoded.
        """
        if is_frame_list(inputs):
            inputs = tuple(inputs)  # one video: the base class takes a list for several inputs, a tuple for one
        elif isinstance(inputs, tuple) or getattr(inputs, "ndim", None) == 5:
            inputs = list(inputs)
        if isinstance(inputs, list) and not inputs:
            return []
        if window is not None:
            if isinstance(inputs, list) or (isinstance(inputs, Iterator) and not hasattr(inputs, "read")):
                return [list(self.iter_windows(video, window, stride, **kwargs)) for video in inputs]
            return list(self.iter_windows(inputs, window, stride, **kwargs))
        if stride is not None:
            raise ValueError(f"stride={stride} is for windows: give window too")
        return super().__call__(inputs, **kwargs)

    def iter_windows(
        self, video: Any, window: float, stride: float | None = None, batch_size: int = 1, **kwargs: Any
    ) -> Iterator[dict[str, Any]]:
        """Labels the windows of one video as they come: what is held in memory does not grow with its length.

        Args:
            video: A path, an http(s) URL, the bytes of a file, or a binary file object.
            window, stride: In seconds, as in `flux_hf.iter_windows`; one window behind the other without a stride.
            batch_size: Windows in a forward pass.
            **kwargs: As in `__call__`, but `num_clips`, `backend` and `num_workers`.

        Yields:
            Dicts of `start` and `end` (seconds) and `labels`, the `top_k` dicts of a video.

        Raises:
            ValueError: an argument out of range, or one that is not for windows; `VideoDecodeError` as
                `flux_hf.iter_windows`.
        """
        wrong = {"num_clips", "backend", "num_workers"} & {name for name in kwargs if kwargs[name] is not None}
        if wrong:
            raise ValueError(f"{sorted(wrong)} cannot be given with window")
        preprocess, forward, postprocess = self._sanitize_parameters(**kwargs)
        num_frames, views = self._shape_and_views(**{**self._preprocess_params, **preprocess})
        views |= {"num_clips": 1, "do_sample_frames": False, "return_tensors": "pt"}
        forward, postprocess = {**self._forward_params, **forward}, {**self._postprocess_params, **postprocess}
        windows = iter_windows(video, window, window if stride is None else stride, num_frames)
        return self._label_windows(windows, as_count("batch_size", batch_size), views, forward, postprocess)

    def _label_windows(
        self, windows: Iterator[VideoWindow], batch_size: int, views: dict, forward: dict, postprocess: dict
    ) -> Iterator[dict[str, Any]]:
        def prepare() -> tuple[float, float, torch.Tensor] | None:
            window = next(windows, None)
            if window is None:
                return None
            prepared = self.video_processor(window.frames, **views).to(self.dtype)
            return window.start, window.end, prepared["pixel_values_videos"]

        with ThreadPoolExecutor(1, thread_name_prefix="flux-decode") as pool:
            waiting = deque(pool.submit(prepare) for _ in range(2 * batch_size))
            damage = None
            while damage is None:
                batch = []
                for _ in range(batch_size):
                    waiting.append(pool.submit(prepare))
                    try:
                        batch.append(waiting.popleft().result())
                    except VideoDecodeError as error:  # behind the windows that were there before it
                        damage = error
                        break
                batch = [found for found in batch if found is not None]
                if not batch:
                    break
                outputs = self._outputs([pixels for *_, pixels in batch], forward)
                for (start, end, _), of_window in zip(batch, outputs, strict=True):
                    yield {"start": start, "end": end, "labels": self.postprocess(of_window, **postprocess)}
            if damage is not None:
                raise damage

    def save_pretrained(self, save_directory: str | os.PathLike, **kwargs: Any) -> None:
        """Saves the model and, unlike the stock pipeline, its video processor."""
        super().save_pretrained(save_directory, **kwargs)
        self.video_processor.save_pretrained(save_directory)

    def preprocess(
        self, video: Any, num_frames: int | None = None, token_budget: int | str | None = None, **views: Any
    ) -> dict[str, torch.Tensor]:
        """Decodes, samples and transforms one video into its views, (V, T, 3, H, W)."""
        num_frames, views = self._shape_and_views(num_frames, token_budget, **views)
        return self.video_processor(
            video, num_frames=num_frames, do_sample_frames=True, return_tensors="pt", **views
        ).to(self.dtype)

    def _shape_and_views(
        self, num_frames: int | None = None, token_budget: int | str | None = None, **views: Any
    ) -> tuple[int, dict[str, Any]]:
        """Frames of a view, and what the processor must know beside, by the token plan where neither is given."""
        if token_budget == AUTO:
            num_frames, views["size"] = BudgetLadder.of(self.model.config).clip(num_frames, views.get("size"))
            return num_frames, views
        if num_frames is None and "size" not in views:
            planned = (self.model.config.token_plan or {}).get(token_budget)
            if planned is not None:
                num_frames, views["size"] = planned
        if num_frames is None:
            num_frames = getattr(self.video_processor, "num_frames", None) or self.model.config.num_frames
        return num_frames, views

    def _forward(
        self,
        model_inputs: dict[str, torch.Tensor],
        token_budget: int | str | None = None,
        num_views: int | None = None,
    ) -> dict[str, torch.Tensor]:
        """Of one video, or of several with `num_views` each."""
        # Only what postprocess needs: everything returned here is copied to the CPU.
        videos = model_inputs["pixel_values_videos"]
        if token_budget != AUTO and selects_by_threshold(self.model):
            return {"logits": logits_at_budgets(self.model, videos, [token_budget])[0]}
        if token_budget != AUTO:
            return {"logits": self.model(**model_inputs, token_budget=token_budget).logits}
        ladder = BudgetLadder.of(self.model.config)
        logits, budgets = logits_at_auto_budgets(self.model, videos, ladder, num_views or len(videos))
        return {"logits": logits, "token_budgets": budgets}

    def _outputs(self, batch: list[torch.Tensor], forward: dict) -> Iterator[dict[str, torch.Tensor]]:
        """What `_forward` gives of each of several videos (V, T, 3, H, W)."""
        one_shape = len({clip.shape[1:] for clip in batch}) == 1
        inputs = {"pixel_values_videos": torch.cat(batch) if one_shape else batch}
        outputs = self.forward(inputs, **forward, num_views=len(batch[0]))
        for index, logits in enumerate(outputs["logits"].split([len(clip) for clip in batch])):
            chosen = {name: outputs[name][index : index + 1] for name in ("token_budgets",) if name in outputs}
            yield {"logits": logits, **chosen}

    def postprocess(
        self, model_outputs: dict[str, torch.Tensor], top_k: int = 5, function_to_apply: str | None = None
    ) -> list[dict[str, Any]]:
        """Logits of one video's views (V, num_labels), and the budget that was chosen for it -> its best labels."""
        config = self.model.config
        if function_to_apply is None:
            by_problem = {"regression": "none", "multi_label_classification": "sigmoid"}
            function_to_apply = by_problem.get(config.problem_type, "softmax")
        logits = model_outputs["logits"].float()
        if function_to_apply == "softmax":
            logits = logits.softmax(-1)
        elif function_to_apply == "sigmoid":
            logits = logits.sigmoid()
        scores, labels = logits.mean(0).topk(min(top_k, config.num_labels))
        chosen = {}
        if "token_budgets" in model_outputs:
            chosen["token_budget"] = int(model_outputs["token_budgets"])
        return [
            {"score": score, "label": config.id2label[label], **chosen}
            for score, label in zip(scores.tolist(), labels.tolist(), strict=True)
        ]

    def get_iterator(
        self,
        inputs: Iterable,
        num_workers: int,
        batch_size: int,
        preprocess_params: dict,
        forward_params: dict,
        postprocess_params: dict,
    ) -> Iterator[list[dict[str, Any]]]:
        """One result a video, in order; up to `batch_size` videos a forward pass, the next ones decoding meanwhile."""
        prepared = self._decode_ahead(inputs, num_workers or DEFAULT_DECODE_THREADS, batch_size, preprocess_params)
        for batch in self._batches(prepared, batch_size, forward_params.get("token_budget")):
            for outputs in self._outputs(batch, forward_params):
                yield self.postprocess(outputs, **postprocess_params)

    def _batches(
        self, clips: Iterable[dict[str, torch.Tensor]], batch_size: int, token_budget: int | str | None
    ) -> Iterator[list[torch.Tensor]]:
        """Runs of up to `batch_size` successive clips (V, T, 3, H, W) of whose views equally many tokens are kept, or,
        where that differs from clip to clip, that have one shape."""
        batch, kept_before = [], None
        for clip in clips:
            views = clip["pixel_values_videos"]
            differs = token_budget == AUTO or selects_by_threshold(self.model)
            kept = views.shape if differs else self.model.count_kept(views.shape[1], *views.shape[3:], token_budget)
            if batch and (len(batch) == batch_size or kept != kept_before):
                yield batch
                batch = []
            batch.append(views)
            kept_before = kept
        if batch:
            yield batch

    def _decode_ahead(
        self, inputs: Iterable, num_threads: int, batch_size: int, preprocess_params: dict
    ) -> Iterator[dict[str, torch.Tensor]]:
        if hasattr(inputs, "__len__") and hasattr(inputs, "__getitem__"):  # a torch Dataset need not end by itself
            inputs = map(inputs.__getitem__, range(len(inputs)))
        waiting: deque[Future] = deque()
        pool = ThreadPoolExecutor(num_threads, thread_name_prefix="flux-decode")
        try:
            for video in inputs:
                waiting.append(pool.submit(self.preprocess, video, **preprocess_params))
                if len(waiting) > batch_size + num_threads:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


__all__ = ["FluxViTVideoClassificationPipeline"]
