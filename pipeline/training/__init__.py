"""From the topic to a release: sequences, training, the gate, the trainer."""
