"""BentoML around onnxruntime."""

import bentoml
import numpy as np
import onnxruntime as ort


@bentoml.service(workers=1)
class Model:
    def __init__(self):
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = ort.InferenceSession("model.onnx", options, providers=["CPUExecutionProvider"])

    @bentoml.api
    def predict(self, x: np.ndarray) -> np.ndarray:
        return self.session.run(["y"], {"x": x.astype(np.float32, copy=False)})[0]
