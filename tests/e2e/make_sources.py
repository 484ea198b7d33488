"""Make models that only their own frameworks can make. Runs inside a tool environment, not in the tests.

make_sources.py tensorflow|sklearn|torch FOLDER DATA
"""

# mypy: ignore-errors
# (its libraries live in the tool environments, not where mypy runs)

import os
import sys
from pathlib import Path

import numpy as np

os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"


def tensorflow(folder, data):
    import keras
    import tensorflow as tf

    keras.utils.set_random_seed(1)
    layers = keras.layers
    image = keras.Input((12, 12, 3), name="image")
    extra = keras.Input((4,), name="extra")
    y = layers.Conv2D(8, 3, padding="same", activation="relu")(image)
    y = layers.DepthwiseConv2D(3)(layers.BatchNormalization()(y))
    y = layers.Concatenate()([layers.GlobalAveragePooling2D()(y), extra])
    model = keras.Model([image, extra], layers.Dense(5, activation="softmax", name="scores")(y))
    model.save(folder / "two_inputs.keras")
    x = np.random.default_rng(2).standard_normal((6, 12, 12, 3)).astype("f4")
    e = np.random.default_rng(3).standard_normal((6, 4)).astype("f4")
    np.savez(folder / "two_inputs.npz", image=x, extra=e, scores=model.predict([x, e], verbose=0))

    model = keras.saving.load_model(data / "ad01-autoencoder" / "ad01.h5", compile=False)
    x = np.random.default_rng(4).standard_normal((6, 640)).astype("f4")
    np.savez(folder / "ad01.npz", x=x, answer=model.predict(x, verbose=0))

    free = keras.Input((None, None, 3), name="photo")
    y = layers.GlobalAveragePooling2D()(layers.Conv2D(4, 3)(free))
    keras.Model(free, layers.Dense(2)(y)).save(folder / "open.keras")

    for name in ("lambda.keras", "lambda.h5"):
        stem = keras.Input((4,), name="x")
        keras.Model(stem, layers.Lambda(lambda v: v * 2.0 + 1.0)(stem)).save(folder / name)

    class Python(tf.Module):
        @tf.function(input_signature=[tf.TensorSpec([None, 4], tf.float32, name="x")])
        def __call__(self, x):
            return tf.py_function(lambda v: v * 2, [x], tf.float32)

    tf.saved_model.save(Python(), str(folder / "python_saved_model"))


def sklearn(folder, _):
    import joblib
    import lightgbm
    from sklearn.datasets import load_breast_cancer, load_diabetes, load_wine
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.linear_model import Ridge
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    quiet = {"verbose": -1, "num_threads": 1, "seed": 1, "deterministic": True}
    for name, load, kind in (
        ("binary", load_breast_cancer, {"objective": "binary"}),
        ("classes", load_wine, {"objective": "multiclass", "num_class": 3}),
        ("regression", load_diabetes, {"objective": "regression"}),
    ):
        x, y = load(return_X_y=True)
        x = x.astype("f4")
        booster = lightgbm.train({**quiet, **kind}, lightgbm.Dataset(x, y), 15)
        booster.save_model(folder / f"lightgbm_{name}.txt")
        np.savez(folder / f"lightgbm_{name}.npz", input=x, answer=booster.predict(x))
    x, y = load_diabetes(return_X_y=True)
    x = x.astype("f4")
    ridge = make_pipeline(StandardScaler(), Ridge()).fit(x, y)
    joblib.dump(ridge, folder / "ridge.joblib.gz", compress=("gzip", 3))
    np.savez(folder / "ridge.npz", input=x, answer=ridge.predict(x))
    x, y = load_wine(return_X_y=True)
    x = x.astype("f4")
    forest = RandomForestClassifier(20, random_state=1).fit(x, y)
    joblib.dump(forest, folder / "forest.joblib")
    np.savez(folder / "forest.npz", input=x, answer=forest.predict_proba(x))


def torch(folder, _):
    import torch
    from torch.export import Dim, export, save

    class Text(torch.nn.Module):
        """Whole numbers in, two named inputs, an open length."""

        def __init__(self):
            super().__init__()
            self.table = torch.nn.Embedding(50, 8)
            self.head = torch.nn.Linear(8, 3)

        def forward(self, ids, mask):
            vectors = self.table(ids) * mask[..., None]
            return self.head(vectors.sum(1) / mask.sum(1, keepdim=True).clamp(min=1))

    class Spectrum(torch.nn.Module):
        def forward(self, x):
            return torch.linalg.eigvals(x @ x.mT).real

    torch.manual_seed(1)
    ids, mask = torch.randint(0, 50, (2, 16)), torch.ones(2, 16)
    free = {"ids": {0: Dim("batch"), 1: Dim("length")}, "mask": {0: Dim("batch"), 1: Dim("length")}}
    text = Text().eval()
    save(export(text, (ids, mask), dynamic_shapes=free), folder / "text.pt2")
    np.savez(folder / "text.npz", ids=ids.numpy(), mask=mask.numpy(), answer=text(ids, mask).detach().numpy())
    broken = Text().eval()
    with torch.no_grad():
        broken.head.weight[0, 0] = float("nan")
    save(export(broken, (ids[:1], mask[:1])), folder / "nan.pt2")
    save(export(Spectrum(), (torch.randn(1, 4, 4),)), folder / "eigenvalues.pt2")
    save(export(torch.nn.ReLU(), (torch.randn(8, 4),)), folder / "batch_of_eight.pt2")

    @torch.jit.script
    def reader(x):
        return x + torch.from_file("/etc/hostname", False, 1, dtype=torch.uint8)

    class Reader(torch.nn.Module):
        def forward(self, x):
            return reader(x)

    torch.jit.script(Reader()).save(folder / "reader.pt")


if __name__ == "__main__":
    {"tensorflow": tensorflow, "sklearn": sklearn, "torch": torch}[sys.argv[1]](
        Path(sys.argv[2]), Path(sys.argv[3])
    )
