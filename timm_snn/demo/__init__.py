"""A page in the browser on which a model shows what it does: `timm-snn demo`, and `demo/app.py` for a Space.

`answers.py` runs the model and `inputs.py` makes its input, both without gradio; `html.py` draws what came out, and
`page.py` lays it out.
"""
