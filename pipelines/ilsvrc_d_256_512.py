"""Table 3 of the VGG paper, net D, S in [256;512]: top-1 error 25.6 %, top-5 error 8.1 % at Q = 384.

Table 4: top-1 error 24.8 %, top-5 error 7.5 % over Q = 256, 384, 512.
Expected by dense evaluation of the 50,000 validation images, which this run makes when the net is trained: these
numbers +- 0.5. The centre crops that training reports are expected up to 3.5 points higher.

Chain:    ilsvrc_a_256.py, ilsvrc_d_256.py, ilsvrc_d_384.py, this one.
Full run: python pipelines/ilsvrc_d_256_512.py --root ILSVRC
GPUs:     torchrun --nproc-per-node 4 pipelines/ilsvrc_d_256_512.py --root ILSVRC
Measure:  python pipelines/ilsvrc_d_256_512.py --root ILSVRC --weights FILE (trains nothing)
Twin:     python pipelines/ilsvrc_d_256_512.py --twin
"""

from vggfeat.retrain import Errors, TrainedRow, retrain

ROW = TrainedRow(
    net="D",
    scale="256:512",
    single=Errors(sides=(384,), top1=25.6, top5=8.1),
    multi=Errors(sides=(256, 384, 512), top1=24.8, top5=7.5),
)

if __name__ == "__main__":
    retrain(ROW)
