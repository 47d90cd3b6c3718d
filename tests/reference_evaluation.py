"""Retrieval metrics by stable sorting, and agreement by counting every pair."""

import random
from itertools import combinations

import numpy as np


def ranked(distances, keep):
    """Gallery rows by distance, the given order among equals."""
    return [g for g in np.argsort(distances, kind="stable") if keep[g]]


def kept(person, camera, identities, cameras, skip):
    if skip == "overlapping-camera":
        return [not (camera == 3 and other == 2) for other in cameras]
    if skip == "own-camera":
        return [
            not (person == who and camera == other)
            for who, other in zip(identities, cameras, strict=True)
        ]
    return [True] * len(identities)


def query_metrics(distances, person, camera, identities, cameras, skip, listed):
    """First hit (from 0), AP and INP of one query; None without a right image."""
    keep = kept(person, camera, identities, cameras, skip)
    people = [identities[g] for g in ranked(distances, keep)]
    places = [place for place, who in enumerate(people, 1) if who == person]
    if not places or person < 0:
        return None
    names = people if listed == "images" else list(dict.fromkeys(people))
    precision = sum(i / place for i, place in enumerate(places, 1)) / len(places)
    return names.index(person), precision, len(places) / places[-1]


RULES = {
    "plain": ("nothing", "images"),
    "regdb": ("nothing", "images"),
    "sysu-all": ("overlapping-camera", "identities"),
    "sysu-indoor": ("overlapping-camera", "identities"),
    "llcm": ("own-camera", "identities"),
}


def ranking_metrics(
    distance, query, gallery, query_cameras, gallery_cameras, protocol, max_rank,
    skip=None, places=None,
):  # fmt: skip
    """CMC, mean AP, mean INP and the number of queries with a right image."""
    rules = skip or RULES[protocol][0], places or RULES[protocol][1]
    found = [
        query_metrics(row, person, camera, gallery, gallery_cameras, *rules)
        for row, person, camera in zip(distance, query, query_cameras, strict=True)
    ]
    found = [one for one in found if one is not None]
    cmc = [np.mean([hit < rank for hit, _, _ in found]) for rank in range(1, max_rank + 1)]
    return np.array(cmc), np.mean([f[1] for f in found]), np.mean([f[2] for f in found]), len(found)


def draw_gallery(identities, cameras, wanted, trial, shots):
    """Rows of a drawn gallery, folder by folder."""
    generator = random.Random(trial)
    drawn = []
    for person in sorted(set(identities)):
        for camera in wanted:
            folder = [
                row
                for row, where in enumerate(zip(identities, cameras, strict=True))
                if where == (person, camera)
            ]
            if folder and shots == 1:
                drawn.append(generator.choice(folder))
            elif folder:
                drawn += generator.sample(folder, min(shots, len(folder)))
    return drawn


def adjusted_rand(labels, identities):
    """From the four kinds of unordered pairs."""
    pairs = list(combinations(range(len(labels)), 2))
    same_label = np.array([labels[i] == labels[j] for i, j in pairs])
    same_person = np.array([identities[i] == identities[j] for i, j in pairs])
    index = (same_label & same_person).sum()
    expected = same_label.sum() * same_person.sum() / len(pairs)
    return (index - expected) / ((same_label.sum() + same_person.sum()) / 2 - expected)


def pair_scores(visible_labels, infrared_labels, visible_identities, infrared_identities):
    """Precision, recall and F1 over all pairs of a visible and an infrared image."""
    label, other = np.asarray(visible_labels)[:, None], np.asarray(infrared_labels)[None]
    predicted = (label == other) & (label >= 0)
    true = np.asarray(visible_identities)[:, None] == np.asarray(infrared_identities)[None]
    right = (predicted & true).sum()
    precision, recall = right / predicted.sum(), right / true.sum()
    return precision, recall, 2 * precision * recall / (precision + recall)
