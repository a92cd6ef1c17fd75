"""Complete training runs, each a package: networks, data, training, and a README with the results.

Its name is `trainkit_recipes`, in a wheel and in a checkout, where that is a link to this folder: `recipes` may be the
name of a package of a user's own.
"""

if __name__ != "trainkit_recipes":  # each module once: a class that is imported under two names is two classes
    raise ImportError("the folder recipes/ is imported as trainkit_recipes: python -m trainkit_recipes.bert.fill")
