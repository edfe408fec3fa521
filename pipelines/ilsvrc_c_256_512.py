"""Table 3 of the VGG paper, net C, S in [256;512]: top-1 error 27.3 %, top-5 error 8.8 % at Q = 384.

Table 4: top-1 error 26.3 %, top-5 error 8.2 % over Q = 256, 384, 512.
Expected by dense evaluation of the 50,000 validation images, which this run makes when the net is trained: these
numbers +- 0.5. The centre crops that training reports are expected up to 3.5 points higher.

Chain:    ilsvrc_a_256.py, ilsvrc_c_256.py, ilsvrc_c_384.py, this one.
Full run: python pipelines/ilsvrc_c_256_512.py --root ILSVRC
GPUs:     torchrun --nproc-per-node 4 pipelines/ilsvrc_c_256_512.py --root ILSVRC
Measure:  python pipelines/ilsvrc_c_256_512.py --root ILSVRC --weights FILE (trains nothing)
Twin:     python pipelines/ilsvrc_c_256_512.py --twin
"""

from vggfeat.retrain import Errors, TrainedRow, retrain

ROW = TrainedRow(
    net="C",
    scale="256:512",
    single=Errors(sides=(384,), top1=27.3, top5=8.8),
    multi=Errors(sides=(256, 384, 512), top1=26.3, top5=8.2),
)

if __name__ == "__main__":
    retrain(ROW)
