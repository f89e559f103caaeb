"""The documentation as a site: `make site` builds it into build/site.

Sphinx reads the whole repository, not only docs/, so a link from one page to another means the same in the site as
among the files: `../deploy/README.md` is a page of the site as well.  A link to a file that is no page gives the file.
The pages load nothing from elsewhere, and the search runs in the browser.  Every warning is an error.
"""

project = "MerkleKV"
copyright = "MerkleKV contributors"
root_doc = "docs/index"
include_patterns = ["*.md", "docs/**.md", "deploy/*.md", "benchmarks/*.md", "tests/**.md"]
exclude_patterns = [".*", "build", "**/node_modules"]
extensions = ["myst_parser"]
myst_heading_anchors = 4  # titles get the anchors that GitHub gives them
myst_links_external_new_tab = False

smartquotes_action = "q"  # not dashes: `--strict` stays as it is, also in prose

html_theme = "furo"
html_title = "MerkleKV"
html_extra_path = ["site"]  # the site's first page leads to docs/index.html
html_copy_source = False
html_show_sphinx = False
