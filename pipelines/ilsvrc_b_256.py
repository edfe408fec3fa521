"""Table 3 of the VGG paper, net B, S = 256: top-1 error 28.7 %, top-5 error 9.9 % at Q = 256.

Table 4: top-1 error 28.2 %, top-5 error 9.6 % over Q = 224, 256, 288.
Expected by dense evaluation of the 50,000 validation images, which this run makes when the net is trained: these
numbers +- 0.5. The centre crops that training reports are expected up to 3.5 points higher.

Chain:    ilsvrc_a_256.py, this one.
Full run: python pipelines/ilsvrc_b_256.py --root ILSVRC
GPUs:     torchrun --nproc-per-node 4 pipelines/ilsvrc_b_256.py --root ILSVRC
Measure:  python pipelines/ilsvrc_b_256.py --root ILSVRC --weights FILE (trains nothing)
Twin:     python pipelines/ilsvrc_b_256.py --twin
"""

from vggfeat.retrain import Errors, TrainedRow, retrain

ROW = TrainedRow(
    net="B",
    scale="256",
    single=Errors(sides=(256,), top1=28.7, top5=9.9),
    multi=Errors(sides=(224, 256, 288), top1=28.2, top5=9.6),
)

if __name__ == "__main__":
    retrain(ROW)
