"""Language-driven attention by loops over positions and channels. Imports nothing of masksd.

It receives the weights of the neck by name and computes the formulas of its docstring anew, for
group normalisation.
"""

from __future__ import annotations

import math

import torch


def neck(weights, maps, sentences, rates):
    """Return the fused features ``(B, D, h, w)`` and the spatial attention ``(B, 1, h, w)``.

    ``maps`` are ``(B, C, h, w)``, shallow to deep, in whole multiples of the last one's size.
    """
    features, attentions = [], []
    for sample, sentence in enumerate(sentences):
        levels, seen = [], []
        rows, columns = maps[-1].shape[2:]
        for number, level in enumerate(maps):
            of_level = part(weights, f"attentions.{number}")
            representation, pixels = attend(of_level, channels_of(level[sample]), sentence)
            strong = pyramid(part(weights, f"pyramids.{number}"), representation, rates)
            levels += [averaged(channel, rows, columns) for channel in strong]
            sure = [[sigmoid(value) for value in row] for row in pixels]
            seen.append(averaged(sure, rows, columns))
        features.append(tensor(block(part(weights, "fuse"), levels)))
        mean = [
            [sum(level[y][x] for level in seen) / len(seen) for x in range(columns)]
            for y in range(rows)
        ]
        attentions.append(tensor([mean]))
    return torch.stack(features), torch.stack(attentions)


def attend(weights, level, sentence):
    """Return ``X`` and ``v`` of one sample."""
    visual = block(part(weights, "visual"), level)
    query = normalized(linear(part(weights, "sentence.0"), list(sentence)))
    query = scaled(part(weights, "sentence.1"), query)
    rows, columns, places = size_of(visual)
    correlation = [
        [[visual[c][y][x] * query[c] for x in range(columns)] for y in range(rows)]
        for c in range(len(visual))
    ]

    def bottleneck(vector):
        inside = linear(part(weights, "channels.0"), vector)
        return linear(part(weights, "channels.2"), [relu(value) for value in inside])

    means = [sum(channel[y][x] for y, x in places) / len(places) for channel in correlation]
    greatest = [greater([channel[y][x] for y, x in places]) for channel in correlation]
    channels = [a + b for a, b in zip(bottleneck(means), bottleneck(greatest), strict=True)]
    over_channels = [[[None] * columns for _ in range(rows)] for _ in range(2)]
    for y, x in places:
        column = [channel[y][x] for channel in correlation]
        over_channels[0][y][x] = sum(column) / len(column)
        over_channels[1][y][x] = greater(column)
    conv = part(weights, "pixels")
    pixels = convolved(conv["weight"], over_channels, 1)[0]
    pixels = [[value + conv["bias"][0] for value in row] for row in pixels]
    representation = [
        [
            [
                visual[c][y][x] + sigmoid(channels[c] + pixels[y][x]) * correlation[c][y][x]
                for x in range(columns)
            ]
            for y in range(rows)
        ]
        for c in range(len(visual))
    ]
    return representation, pixels


def pyramid(weights, features, rates):
    rows, columns, places = size_of(features)
    seen = []
    for number, rate in enumerate([1, *rates]):
        seen += block(part(weights, f"fields.{number}"), features, rate)
    means = [sum(channel[y][x] for y, x in places) / len(places) for channel in features]
    whole = scaled(part(weights, "whole.1"), normalized(linear(part(weights, "whole.0"), means)))
    seen += [[[relu(value)] * columns for _ in range(rows)] for value in whole]
    return block(part(weights, "join"), seen)


def block(weights, channels, rate=1):
    """Convolution, group normalisation in gcd(C, 8) groups, ReLU."""
    out = convolved(part(weights, "0")["weight"], channels, rate)
    rows, columns, places = size_of(out)
    groups = math.gcd(len(out), 8)
    width = len(out) // groups
    norm = part(weights, "1")
    done = []
    for group in range(groups):
        members = range(group * width, (group + 1) * width)
        flat = normalized([out[c][y][x] for c in members for y, x in places])
        for index, c in enumerate(members):
            values = flat[index * len(places) : (index + 1) * len(places)]
            values = [relu(v * norm["weight"][c] + norm["bias"][c]) for v in values]
            done.append([values[y * columns : (y + 1) * columns] for y in range(rows)])
    return done


def convolved(kernel, channels, rate):
    """Correlate with ``kernel (O, I, k, k)``, its taps ``rate`` apart; zeros lie outside."""
    rows, columns, places = size_of(channels)
    outputs, _, side, _ = kernel.shape
    reach = side // 2
    out = [
        [[kernel.new_zeros(()) for _ in range(columns)] for _ in range(rows)]
        for _ in range(outputs)
    ]
    for o in range(outputs):
        for y, x in places:
            for i, channel in enumerate(channels):
                for a in range(side):
                    for b in range(side):
                        row, column = y + rate * (a - reach), x + rate * (b - reach)
                        if 0 <= row < rows and 0 <= column < columns:
                            out[o][y][x] = out[o][y][x] + kernel[o, i, a, b] * channel[row][column]
    return out


def averaged(channel, rows, columns):
    """Average equal blocks, so that ``rows x columns`` are left."""
    tall, wide = len(channel) // rows, len(channel[0]) // columns
    return [
        [
            sum(channel[y * tall + a][x * wide + b] for a in range(tall) for b in range(wide))
            / (tall * wide)
            for x in range(columns)
        ]
        for y in range(rows)
    ]


def part(weights, name):
    return {
        key.removeprefix(f"{name}."): value
        for key, value in weights.items()
        if key.startswith(f"{name}.")
    }


def linear(weights, vector):
    return [
        sum(w * v for w, v in zip(row, vector, strict=True)) + bias
        for row, bias in zip(weights["weight"], weights["bias"], strict=True)
    ]


def normalized(values):
    mean = sum(values) / len(values)
    variance = sum((value - mean) ** 2 for value in values) / len(values)
    return [(value - mean) / (variance + 1e-5) ** 0.5 for value in values]


def scaled(weights, values):
    return [w * v + b for w, v, b in zip(weights["weight"], values, weights["bias"], strict=True)]


def greater(values):
    return torch.stack(values).max()


def relu(value):
    return value if value > 0 else 0.0 * value


def sigmoid(value):
    return 1 / (1 + (-value).exp())


def size_of(channels):
    rows, columns = len(channels[0]), len(channels[0][0])
    return rows, columns, [(y, x) for y in range(rows) for x in range(columns)]


def channels_of(level):
    return [[list(row) for row in channel] for channel in level]


def tensor(channels):
    return torch.stack([torch.stack([torch.stack(row) for row in channel]) for channel in channels])
