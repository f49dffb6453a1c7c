"""The demo page as a Space of the Hugging Face Hub: `python app.py`, after `pip install -r requirements.txt`."""

from timm_snn.demo.inputs import shipped
from timm_snn.demo.page import LAUNCH, make_page

demo = make_page(shipped())

if __name__ == '__main__':
    demo.launch(**LAUNCH)
