"""Table 3 of the VGG paper, net E, S = 384: top-1 error 26.9 %, top-5 error 8.7 % at Q = 384.

Table 4: top-1 error 26.7 %, top-5 error 8.6 % over Q = 352, 384, 416.
Expected by dense evaluation of the 50,000 validation images, which this run makes when the net is trained: these
numbers +- 0.5. The centre crops that training reports are expected up to 3.5 points higher.

Chain:    ilsvrc_a_256.py, ilsvrc_e_256.py, this one.
Full run: python pipelines/ilsvrc_e_384.py --root ILSVRC
GPUs:     torchrun --nproc-per-node 4 pipelines/ilsvrc_e_384.py --root ILSVRC
Measure:  python pipelines/ilsvrc_e_384.py --root ILSVRC --weights FILE (trains nothing)
Twin:     python pipelines/ilsvrc_e_384.py --twin
"""

from vggfeat.retrain import Errors, TrainedRow, retrain

ROW = TrainedRow(
    net="E",
    scale="384",
    single=Errors(sides=(384,), top1=26.9, top5=8.7),
    multi=Errors(sides=(352, 384, 416), top1=26.7, top5=8.6),
)

if __name__ == "__main__":
    retrain(ROW)
