"""ARSAM in ``model.fit`` of Keras 3: BatchNorm, dropout, Keras' own optimizer and metrics."""

import os

os.environ.setdefault("KERAS_BACKEND", "jax")  # before keras is imported

import keras
import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import arsam_jax.keras

EPOCHS, BATCH_SIZE = 12, 64


class Model(arsam_jax.keras.SharpnessAware, keras.Model):
    pass


def make_model():
    inputs = keras.Input((64,))
    x = keras.layers.Dense(128, use_bias=False)(inputs)
    x = keras.layers.BatchNormalization(momentum=0.9)(x)
    x = keras.layers.Dropout(0.2)(keras.layers.ReLU()(x))
    return Model(inputs, keras.layers.Dense(10)(x))


def main():
    images, labels = load_digits(return_X_y=True)
    images = (images / 16).astype(np.float32)
    images, test_images, labels, test_labels = train_test_split(images, labels, random_state=0)

    keras.utils.set_random_seed(0)
    model = make_model()
    model.compile(
        keras.optimizers.AdamW(3e-3),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
        # Comes before the optimizer. In runs of more than 5,000 steps leave out segment_length.
        link=arsam_jax.arsam(rho=0.1, alpha=0.4, segment_length=8),
    )

    # Once: raises an error if the two gradients do not belong together.
    grads, params, grad_fn = model.gradients(images[:BATCH_SIZE], labels[:BATCH_SIZE])
    arsam_jax.check_wiring(model.link, grads, params, grad_fn=grad_fn)

    history = model.fit(images, labels, batch_size=BATCH_SIZE, epochs=EPOCHS)
    _, accuracy = model.evaluate(test_images, test_labels)
    sampled = history.history["sampled_share"][-1]
    print(f"{EPOCHS} epochs, %SAM {100 * sampled:.1f}, test accuracy {100 * accuracy:.1f} %")


if __name__ == "__main__":
    main()
