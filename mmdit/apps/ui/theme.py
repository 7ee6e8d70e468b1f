"""How the page looks."""

from __future__ import annotations

import gradio as gr

# Fonts of the visitor's machine: none is fetched.
THEME = gr.themes.Default(font=("system-ui", "sans-serif"), font_mono=("ui-monospace", "monospace"))

# Of the page's content: gradio puts its own selectors before these. Galleries grow with their pictures instead of scrolling
# inside the page, and take no more than its width. On a phone all tasks' tabs fit beside each other.
CSS = """
#status { min-height: 3em; overflow-wrap: anywhere; }
#build { align-self: flex-end; }
#pictures, .examples { height: auto !important; min-height: 0 !important; }
#pictures .grid-wrap, .examples .grid-wrap {
  height: auto !important; min-height: 0 !important; max-height: none !important; overflow: visible !important;
}
#pictures .grid-container { grid-template-columns: repeat(2, minmax(0, 1fr)) !important; }
.examples .grid-container {
  grid-template-columns: repeat(5, minmax(0, 1fr)) !important; grid-template-rows: none !important;
  grid-auto-rows: auto !important; padding-top: 1.6em;
}
.examples .thumbnail-lg { height: auto !important; aspect-ratio: 1 / 1; }
.picture img { width: 100%; height: 100%; object-fit: contain; }
.swatch { display: inline-flex; align-items: center; margin: 0 .8em .2em 0; white-space: nowrap; }
.swatch i { width: 1em; height: 1em; margin-right: .3em; border: 1px solid #888; border-radius: 3px; }
@media (max-width: 640px) {
  #tasks > .tab-wrapper .tab-container > button { padding: 0 5px !important; font-size: 13px !important; }
}
"""
# Of what is around it.
HEAD = """<style>
@media (max-width: 640px) {
  .gradio-container .main.fillable { padding-left: 8px !important; padding-right: 8px !important; }
}
</style>"""
