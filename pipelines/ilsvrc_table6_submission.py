"""Table 6 of the VGG paper, the seven nets of the submission, dense evaluation: top-1 error 24.7 %, top-5 error 7.5 %.

C, D and E at S = 256 and 384, and D at [256;512], each at the scales of Table 4.
Expected: these numbers +- 0.5.

Nets:     ilsvrc_d_256.py, ilsvrc_d_384.py, ilsvrc_d_256_512.py, ilsvrc_c_256.py, ilsvrc_c_384.py, ilsvrc_e_256.py,
          ilsvrc_e_384.py, with the same --out.
Full run: python pipelines/ilsvrc_table6_submission.py --root ILSVRC
Others:   the same with seven times --weights FILE, in the order of the nets below
Twin:     python pipelines/ilsvrc_table6_submission.py --twin
"""

from vggfeat.reclassify import ClassifiedRow, Net, reclassify

ROW = ClassifiedRow(
    name="ilsvrc_table6_submission",
    table=6,
    nets=(
        Net(net="D", scale="256", sides=(224, 256, 288)),
        Net(net="D", scale="384", sides=(352, 384, 416)),
        Net(net="D", scale="256:512", sides=(256, 384, 512)),
        Net(net="C", scale="256", sides=(224, 256, 288)),
        Net(net="C", scale="384", sides=(352, 384, 416)),
        Net(net="E", scale="256", sides=(224, 256, 288)),
        Net(net="E", scale="384", sides=(352, 384, 416)),
    ),
    mode="dense",
    top1=24.7,
    top5=7.5,
)

if __name__ == "__main__":
    reclassify(ROW)
