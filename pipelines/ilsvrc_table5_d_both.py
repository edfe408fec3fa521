"""Table 5 of the VGG paper, net D, multi-crop & dense evaluation: top-1 error 24.4 %, top-5 error 7.2 %.

S in [256;512], Q = 256, 384, 512.
Expected: these numbers +- 0.5.

Nets:     ilsvrc_d_256_512.py, with the same --out.
Full run: python pipelines/ilsvrc_table5_d_both.py --root ILSVRC
Others:   python pipelines/ilsvrc_table5_d_both.py --root ILSVRC --weights D.safetensors
Twin:     python pipelines/ilsvrc_table5_d_both.py --twin
"""

from vggfeat.reclassify import ClassifiedRow, Net, reclassify

ROW = ClassifiedRow(
    name="ilsvrc_table5_d_both",
    table=5,
    nets=(Net(net="D", scale="256:512", sides=(256, 384, 512)),),
    mode="both",
    top1=24.4,
    top5=7.2,
)

if __name__ == "__main__":
    reclassify(ROW)
