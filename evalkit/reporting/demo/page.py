"""The page: what stands where, and which answer follows which touch. Needs gradio, imported when a page is built."""

from __future__ import annotations

import functools
import html
import inspect
from collections.abc import Callable
from typing import Any

from evalkit.errors import EvalkitError, UsageError
from evalkit.reporting.demo.desk import CLASS_TOKEN, PATCH, Desk
from evalkit.reporting.demo.photos import Photo

THRESHOLD = 0.6
NEAREST, HEADS, PAIR = "nearest", "heads", "pair"
"""Ids of the tabs."""

INTRODUCTION = """# What does this encoder take for the same?
**Click on the photograph.** The patch under the click asks; every other patch answers with its cosine similarity to it.
Nothing was trained for this: it is the frozen encoder alone."""

CREDITS = """The shipped photographs are from COCO 2017 under their own licences, listed in `mini/coco/ATTRIBUTION.md`.
Photographs that you add stay on the machine that serves this page and are deleted when it stops."""

STYLE = """
.gradio-container { max-width: 1240px !important; margin: 0 auto !important; }
h3 { margin: 0 !important; }
#photo img { cursor: crosshair; }
.image-container .icon-button-wrapper, #upload .icon-wrap, #other-upload .icon-wrap { display: none; }
.grid-wrap { height: auto !important; min-height: 0 !important; max-height: none !important; overflow: visible !important; }
.grid-container { grid-template-columns: repeat(var(--in-a-row), minmax(0, 1fr)) !important; }
#examples, #others { --in-a-row: 8; }
#found { --in-a-row: 6; }
#heads { --in-a-row: 4; }
#examples .caption-label, #others .caption-label { display: none; }
.caption-label { font-size: 12px; padding: 1px 5px; }
@media (max-width: 640px) {
  #examples, #others { --in-a-row: 4; }
  #found { --in-a-row: 3; }
  #heads { --in-a-row: 2; }
}
"""

Handler = Callable[..., Any]


def in_words(handler: Handler) -> Handler:
    """The handler, its EvalkitError shown to the person as a message, without a traceback. A parameter `event` is given
    where on a picture, or which of several, was clicked."""
    import gradio as gr

    @functools.wraps(handler)
    def told(*given: Any) -> Any:
        try:
            return handler(*given)
        except EvalkitError as error:
            raise gr.Error(html.escape(str(error)), title="Not this one", print_exception=False) from None

    told.__annotations__ = {"event": gr.SelectData} if "event" in inspect.signature(handler).parameters else {}
    return told


def build(desk: Desk) -> Any:
    """The page as gradio's Blocks, not yet served."""
    import gradio as gr

    with gr.Blocks(title="evalkit demo", analytics_enabled=False, delete_cache=(600, 3600)) as page:
        _Layout(gr, desk).wire(page)
    return page


class _Layout:
    """The components, made from top to bottom, and the events that join them."""

    def __init__(self, gr: Any, desk: Desk) -> None:
        self.gr, self.desk = gr, desk
        first, other = desk.examples[0], desk.examples[min(1, len(desk.examples) - 1)]
        self.photo, self.at = gr.State(first), gr.State(first.at)
        self.other, self.tab = gr.State(other), gr.State(NEAREST)
        gr.Markdown(INTRODUCTION)
        with gr.Row():
            with gr.Column(scale=1, min_width=280):
                gr.Markdown("### Encoder")
                names = list(desk.looker.names)
                self.encoder = gr.Dropdown(names, value=names[0], label="Encoder", show_label=False, elem_id="encoder")
            with gr.Column(scale=2, min_width=280):
                self.upload = self._upload("upload", "Your photograph")
        self.examples = self._gallery("examples", "or one of these")
        with gr.Row():
            with gr.Column(min_width=280):
                self.shown = self._picture("photo", "Click a patch", first.shown, "jpeg")
            with gr.Column(min_width=280):
                self.heat = self._picture("heat", "How similar every patch is", None, "png")
            with gr.Column(min_width=280):
                self.mask = self._picture("mask", "Patches above the threshold", None, "jpeg")
                self.threshold = gr.Slider(0, 1, THRESHOLD, step=0.01, label="Threshold (cosine)", elem_id="threshold")
                self.said = gr.Markdown(elem_id="said")
        with gr.Tabs(selected=NEAREST, overflow_behavior="wrap"):
            self._tabs()
        gr.Markdown(CREDITS)

    def _tabs(self) -> None:
        gr = self.gr
        with gr.Tab("Nearest patches", id=NEAREST) as self.nearest_tab:
            gr.Markdown("In the shipped photographs, the most similar patch first, with what lies around it.")
            self.own = gr.Checkbox(False, label="Also search the photograph that asks", elem_id="own")
            self.found = self._tiles("found", "Nearest patches", "jpeg", 6)
        with gr.Tab("Attention heads", id=HEADS) as self.heads_tab:
            self.asks = gr.Radio([CLASS_TOKEN, PATCH], value=CLASS_TOKEN, label="Whose attention", elem_id="asks")
            self.heads_said = gr.Markdown(elem_id="heads-said")
            self.heads = self._tiles("heads", "Attention to each patch", "png", 4)
        with gr.Tab("Two photographs", id=PAIR) as self.pair_tab:
            self.other_upload = self._upload("other-upload", "The other photograph")
            self.others = self._gallery("others", "or one of these")
            self.pair_said = gr.Markdown(elem_id="pair-said")
            with gr.Row():
                with gr.Column(min_width=280):
                    self.lines = self._picture("lines", "Patches that choose each other", None, "jpeg")
                with gr.Column(min_width=280):
                    self.partner = self._picture("partner", "The patch that you pointed at, in the other", None, "jpeg")

    def _gallery(self, name: str, title: str) -> Any:
        self.gr.Markdown(title)
        thumbs = [(photo.shown, photo.name) for photo in self.desk.examples]
        return self.gr.Gallery(thumbs, show_label=False, columns=8, format="jpeg", buttons=[], allow_preview=False,
                               object_fit="cover", interactive=False, container=False, elem_id=name)  # fmt: skip

    def _tiles(self, name: str, label: str, format: str, columns: int) -> Any:
        return self.gr.Gallery(label=label, show_label=False, columns=columns, format=format, buttons=["fullscreen"],
                               object_fit="contain", interactive=False, container=False, elem_id=name)  # fmt: skip

    def _upload(self, name: str, title: str) -> Any:
        self.gr.Markdown(f"### {title}")
        made = self.gr.File(label=title, show_label=False, file_types=["image"], height=104, elem_id=name)
        made.async_move_resource_to_block_cache = _no_addresses(made.async_move_resource_to_block_cache)
        return made

    def _picture(self, name: str, title: str, value: Any, format: str) -> Any:
        self.gr.Markdown(f"### {title}")
        return self.gr.Image(value, show_label=False, label=title, format=format, interactive=False, buttons=[],
                             min_width=260, container=False, elem_id=name, alt_text=title)  # fmt: skip

    def wire(self, page: Any) -> None:
        """Join touches and answers."""
        asked = [self.encoder, self.photo, self.at]
        views = [self.shown, self.heat, self.mask, self.said]
        answer = {"inputs": [*asked, self.threshold], "outputs": views}
        follow = {"inputs": [*asked, self.tab, self.own, self.asks, self.other],
                  "outputs": [self.found, self.heads, self.heads_said, self.lines, self.partner, self.pair_said]}  # fmt: skip

        def then_follow(event: Any) -> None:
            self._on(event.success, self._follow, **follow)

        def both(touch: Handler, handler: Handler, inputs: list[Any]) -> None:
            event = self._on(touch, handler, inputs=inputs, outputs=[self.photo, self.at])
            then_follow(self._on(event.success, self.desk.click, **answer))

        then_follow(self._on(self.shown.select, self._point, inputs=[self.encoder, self.photo, self.threshold],
                             outputs=[self.at, *views]))  # fmt: skip
        both(self.examples.select, self._choose, [])
        both(self.upload.upload, self._take, [self.upload])
        then_follow(self._on(self.encoder.change, self.desk.click, **answer))
        self._on(self.threshold.input, self.desk.slide, inputs=[*asked, self.threshold],
                 outputs=[self.mask, self.said], trigger_mode="always_last")  # fmt: skip
        for touch in (self.own.input, self.asks.input):
            self._on(touch, self._follow, **follow)
        for tab, name in ((self.nearest_tab, NEAREST), (self.heads_tab, HEADS), (self.pair_tab, PAIR)):
            then_follow(self._on(tab.select, lambda name=name: name, inputs=[], outputs=[self.tab]))
        for touch, handler, inputs in ((self.others.select, self._other, []),
                                       (self.other_upload.upload, self._take_other, [self.other_upload])):  # fmt: skip
            event = self._on(touch, handler, inputs=inputs, outputs=[self.other])
            self._on(event.success, self._follow, **follow)
        then_follow(self._on(page.load, self.desk.click, **answer))

    def _on(self, touch: Handler, handler: Handler, **joined: Any) -> Any:
        return touch(fn=in_words(handler), api_visibility="private", show_progress="minimal", **joined)

    def _point(self, encoder: str, photo: Photo, threshold: float, event: Any) -> tuple[Any, ...]:
        at = (int(event.index[0]), int(event.index[1]))
        return at, *self.desk.click(encoder, photo, at, threshold)

    def _choose(self, event: Any) -> tuple[Photo, tuple[int, int]]:
        photo: Photo = self.desk.examples[event.index]
        return photo, photo.at

    def _other(self, event: Any) -> Photo:
        photo: Photo = self.desk.examples[event.index]
        return photo

    def _take(self, path: str) -> tuple[Photo, tuple[int, int]]:
        photo = self.desk.take(path)
        return photo, photo.at

    def _take_other(self, path: str) -> Photo:
        return self.desk.take(path)

    def _follow(
        self, encoder: str, photo: Photo, at: tuple[int, int], tab: str, own: bool, asks: str, other: Photo
    ) -> Any:
        """What the open tab shows; the others wait until they are opened."""
        skip = self.gr.skip()
        if tab == NEAREST:
            return self.desk.nearest(encoder, photo, at, own), skip, skip, skip, skip, skip
        if tab == HEADS:
            return skip, *self.desk.heads(encoder, photo, at, asks), skip, skip, skip
        return skip, skip, skip, *self.desk.pair(encoder, photo, at, other)


def _no_addresses(move: Handler) -> Handler:
    """Uploads come from the person's machine: an address in place of a file would make this one fetch it."""

    async def moved(path: Any) -> Any:
        if "://" in str(path):
            raise UsageError("an address is no upload")
        return await move(path)

    return moved
