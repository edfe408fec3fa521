"""Table 3 of the VGG paper, net A-LRN, S = 256: top-1 error 29.7 %, top-5 error 10.5 % at Q = 256.

Table 4 does not have this net.
Expected by dense evaluation of the 50,000 validation images, which this run makes when the net is trained: these
numbers +- 0.5. The centre crops that training reports are expected up to 3.5 points higher.

Starts from random weights.
Full run: python pipelines/ilsvrc_a_lrn_256.py --root ILSVRC
GPUs:     torchrun --nproc-per-node 4 pipelines/ilsvrc_a_lrn_256.py --root ILSVRC
Measure:  python pipelines/ilsvrc_a_lrn_256.py --root ILSVRC --weights FILE (trains nothing)
Twin:     python pipelines/ilsvrc_a_lrn_256.py --twin
"""

from vggfeat.retrain import Errors, TrainedRow, retrain

ROW = TrainedRow(
    net="A-LRN",
    scale="256",
    single=Errors(sides=(256,), top1=29.7, top5=10.5),
)

if __name__ == "__main__":
    retrain(ROW)
