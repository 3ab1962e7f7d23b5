"""BLEU and chrF of translations, by sacrebleu (Post 2018), with its signatures.

The scores are those of the whole corpus, as the command `sacrebleu REFERENCES -i
HYPOTHESES` prints them.
"""

from collections.abc import Sequence

import sacrebleu


def scores(
    hypotheses: Sequence[str], references: Sequence[str], language: str
) -> tuple[dict[str, float], dict[str, str]]:
    """Scores, and the signature of each, which says how it was computed.

    Args:
      hypotheses: the translations, one or more.
      references: as many.
      language: of them; 'de' has also the scores of the paper's Table 4.

    Returns:
      'bleu' (cased, tokenized as mteval-v13a), 'bleu_lowercase', 'chrf'; for 'de' also
      'bleu_intl' and 'bleu_intl_lowercase', the two sacreBLEU columns of Table 4.
    """
    kinds: dict[str, sacrebleu.metrics.base.Metric] = {
        'bleu': sacrebleu.BLEU(),
        'bleu_lowercase': sacrebleu.BLEU(lowercase=True),
        'chrf': sacrebleu.CHRF(),
    }
    if language == 'de':
        kinds['bleu_intl'] = sacrebleu.BLEU(tokenize='intl')
        kinds['bleu_intl_lowercase'] = sacrebleu.BLEU(tokenize='intl', lowercase=True)
    values = {
        name: float(kind.corpus_score(list(hypotheses), [list(references)]).score)
        for name, kind in kinds.items()
    }
    return values, {name: str(kind.get_signature()) for name, kind in kinds.items()}
