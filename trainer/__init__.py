"""From a dataset to a trained LSTM: the plan of an epoch, the tf.data reader, the model, the loop."""
