"""Sphinx's settings for the site. Everything a page needs is in the site: nothing is fetched from elsewhere."""

from importlib import metadata

project = "lqray"
author = "the makers of lqray"
release = version = metadata.version("lqray")
extensions = ["myst_parser"]
root_doc = "index"
source_suffix = {".md": "markdown"}
html_theme = "furo"
html_title = f"lqray {release}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_sphinx = False
html_copy_source = False
html_show_sourcelink = False
myst_heading_anchors = 4
"""Headings have the anchors that Git hosts give them."""
nitpicky = True
"""A reference that leads nowhere is a warning, and so an error."""
pygments_style = "friendly"
pygments_dark_style = "monokai"
