"""Table 5 of the VGG paper, net D, multi-crop evaluation, 150 crops: top-1 error 24.6 %, top-5 error 7.5 %.

S in [256;512], Q = 256, 384, 512.
Expected: these numbers +- 0.5.

Nets:     ilsvrc_d_256_512.py, with the same --out.
Full run: python pipelines/ilsvrc_table5_d_multi_crop.py --root ILSVRC
Others:   python pipelines/ilsvrc_table5_d_multi_crop.py --root ILSVRC --weights D.safetensors
Twin:     python pipelines/ilsvrc_table5_d_multi_crop.py --twin
"""

from vggfeat.reclassify import ClassifiedRow, Net, reclassify

ROW = ClassifiedRow(
    name="ilsvrc_table5_d_multi_crop",
    table=5,
    nets=(Net(net="D", scale="256:512", sides=(256, 384, 512)),),
    mode="multi-crop",
    top1=24.6,
    top5=7.5,
)

if __name__ == "__main__":
    reclassify(ROW)
