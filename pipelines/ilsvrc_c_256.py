"""Table 3 of the VGG paper, net C, S = 256: top-1 error 28.1 %, top-5 error 9.4 % at Q = 256.

Table 4: top-1 error 27.7 %, top-5 error 9.2 % over Q = 224, 256, 288.
Expected by dense evaluation of the 50,000 validation images, which this run makes when the net is trained: these
numbers +- 0.5. The centre crops that training reports are expected up to 3.5 points higher.

Chain:    ilsvrc_a_256.py, this one.
Full run: python pipelines/ilsvrc_c_256.py --root ILSVRC
GPUs:     torchrun --nproc-per-node 4 pipelines/ilsvrc_c_256.py --root ILSVRC
Measure:  python pipelines/ilsvrc_c_256.py --root ILSVRC --weights FILE (trains nothing)
Twin:     python pipelines/ilsvrc_c_256.py --twin
"""

from vggfeat.retrain import Errors, TrainedRow, retrain

ROW = TrainedRow(
    net="C",
    scale="256",
    single=Errors(sides=(256,), top1=28.1, top5=9.4),
    multi=Errors(sides=(224, 256, 288), top1=27.7, top5=9.2),
)

if __name__ == "__main__":
    retrain(ROW)
