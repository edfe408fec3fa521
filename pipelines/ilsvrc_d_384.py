"""Table 3 of the VGG paper, net D, S = 384: top-1 error 26.8 %, top-5 error 8.7 % at Q = 384.

Table 4: top-1 error 26.5 %, top-5 error 8.6 % over Q = 352, 384, 416.
Expected by dense evaluation of whole pictures: these numbers +- 0.5. This run reports the centre crop, which is
expected up to 3.5 points higher: MatConvNet's table has 28.5 and 9.9 % for the published D, 25.6 and 8.1 % when dense.

Chain:    ilsvrc_a_256.py, ilsvrc_d_256.py, this one.
Full run: python pipelines/ilsvrc_d_384.py --root ILSVRC
GPUs:     torchrun --nproc-per-node 4 pipelines/ilsvrc_d_384.py --root ILSVRC
Twin:     python pipelines/ilsvrc_d_384.py --twin
"""

from vggfeat.retrain import Errors, TrainedRow, retrain

ROW = TrainedRow(
    net="D",
    scale="384",
    single=Errors(sides=(384,), top1=26.8, top5=8.7),
    multi=Errors(sides=(352, 384, 416), top1=26.5, top5=8.6),
)

if __name__ == "__main__":
    retrain(ROW)
