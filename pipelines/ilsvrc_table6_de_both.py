"""Table 6 of the VGG paper, nets D and E, multi-crop & dense evaluation: top-1 error 23.7 %, top-5 error 6.8 %.

S in [256;512], Q = 256, 384, 512.
Expected: these numbers +- 0.5.

Nets:     ilsvrc_d_256_512.py, ilsvrc_e_256_512.py, with the same --out.
Full run: python pipelines/ilsvrc_table6_de_both.py --root ILSVRC
Others:   python pipelines/ilsvrc_table6_de_both.py --root ILSVRC --weights D.safetensors --weights E.safetensors
Twin:     python pipelines/ilsvrc_table6_de_both.py --twin
"""

from vggfeat.reclassify import ClassifiedRow, Net, reclassify

ROW = ClassifiedRow(
    name="ilsvrc_table6_de_both",
    table=6,
    nets=(
        Net(net="D", scale="256:512", sides=(256, 384, 512)),
        Net(net="E", scale="256:512", sides=(256, 384, 512)),
    ),
    mode="both",
    top1=23.7,
    top5=6.8,
)

if __name__ == "__main__":
    reclassify(ROW)
