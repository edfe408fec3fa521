"""Table 6 of the VGG paper, nets D and E, dense evaluation: top-1 error 24.0 %, top-5 error 7.1 %.

S in [256;512], Q = 256, 384, 512.
Expected: these numbers +- 0.5.

Nets:     ilsvrc_d_256_512.py, ilsvrc_e_256_512.py, with the same --out.
Full run: python pipelines/ilsvrc_table6_de_dense.py --root ILSVRC
Others:   python pipelines/ilsvrc_table6_de_dense.py --root ILSVRC --weights D.safetensors --weights E.safetensors
Twin:     python pipelines/ilsvrc_table6_de_dense.py --twin
"""

from vggfeat.reclassify import ClassifiedRow, Net, reclassify

ROW = ClassifiedRow(
    name="ilsvrc_table6_de_dense",
    table=6,
    nets=(
        Net(net="D", scale="256:512", sides=(256, 384, 512)),
        Net(net="E", scale="256:512", sides=(256, 384, 512)),
    ),
    mode="dense",
    top1=24.0,
    top5=7.1,
)

if __name__ == "__main__":
    reclassify(ROW)
